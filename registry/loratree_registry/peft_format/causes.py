"""The likely cause of many problems of one adapter, in one sentence with its remedy; standard library only.

A file that another tool wrote, or that was trained on another model, differs from what PEFT writes in every tensor. One
cause says more than two hundred clauses.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from loratree_registry.core.text import one_line, shortened
from loratree_registry.peft_format.layout import CONVOLUTIONS
from loratree_registry.peft_format.names import PREFIX, BaseIndex, base_name
from loratree_registry.tensor_files.header import Tensor

# What wraps a model while it is trained, and what saves it without the wrapper.
WRAPPERS: Final = {
    "_orig_mod": "torch.compile puts it there: save the model inside (its _orig_mod), or rename the keys without it",
    "_fsdp_wrapped_module": "FSDP puts it there: save with the trainer's save_model, or a full state dict",
    "_checkpoint_wrapped_module": "activation checkpointing puts it there: save the model inside the wrapper",
    "module": "a parallel model puts it there: save the model inside, model.module",
}
# What the keys of other tools' files look like, what wrote them, and what to do.
_TOOLS: Final = (
    (r"\.lora_a\.weight$", "torchtune's own keys", "convert it with torchtune's tune_to_peft_adapter_weights"),
    (r"\.lora_a$", "MLX's keys", "fuse it with mlx_lm.fuse, or rename its keys to PEFT's and transpose A and B"),
    (r"^layers\.\d+\.(attention|feed_forward)\.w", "mistral-finetune's keys", "rename them to those of the PEFT model"),
    (r"^lora_(unet|te\d?)_|\.lora_(down|up)\.weight$", "kohya's keys", "convert it with diffusers"),
)
_FACTOR: Final = re.compile(r"\.lora_(embedding_)?([AB])(\.weight)?$")
_NUMBER: Final = re.compile(r"\.(\d+)\.")
_ENDINGS: Final = 12  # segments at the end of a module's name that are looked for under another prefix
_SAMPLE: Final = 100  # modules that a change of prefix is tried on
_TRIES: Final = 50  # changes of prefix that are tried
_PUBLISH_THERE: Final = "publish to the tree of the base that it was trained on"
_SOME: Final = 0.1  # a base with other heads differs in the keys and values alone
_MOST: Final = 0.5  # a cause must explain more than this share of the tensors


def likely_cause(tensors: Mapping[str, Tensor], base: BaseIndex, *, named: object = None) -> str | None:
    """Return the cause that explains most of an adapter's tensors, or None if no known cause does.

    `named` is the base that the adapter's config names; it is told if the adapter is of another base.
    """
    causes = (_find_wrapper, _find_nested, _find_named, _find_tool, _find_other_place, _find_other_size)
    cause = next((cause for find in causes if (cause := find(tensors, base)) is not None), None)
    if cause is None or not cause.endswith(_PUBLISH_THERE) or not isinstance(named, str) or not named.strip():
        return cause
    return f"{cause}: its config names {shortened(one_line(named))}"


def _count(keys: list[str], tensors: Mapping[str, Tensor]) -> str:
    return f"{len(keys)} of {len(tensors)} tensors, such as {keys[0]},"


def _find_wrapper(tensors: Mapping[str, Tensor], base: BaseIndex) -> str | None:
    for segment, remedy in WRAPPERS.items():
        if any(segment in name.split(".") for name in base.kinds):
            continue
        keys = [key for key in tensors if segment in key.split(".")]
        inside = [".".join(part for part in key.split(".") if part != segment) for key in keys]
        known = [module for key in inside if (module := _module(key.removeprefix(PREFIX))) and _is_in(base, module)]
        if keys and (known or len(keys) > _MOST * len(tensors)):  # a few layers can be wrapped alone
            return f"{_count(keys, tensors)} have `{segment}.` in their names; {remedy}"
    return None


def _find_nested(tensors: Mapping[str, Tensor], _: BaseIndex) -> str | None:
    keys = [key for key in tensors if key.startswith(2 * PREFIX)]
    if len(keys) <= _MOST * len(tensors):
        return None
    return (
        f"{_count(keys, tensors)} are of a PeftModel inside a PeftModel: give get_peft_model the plain model; to "
        "build on the first adapter, publish it, compose it with --mode merge, and train on that model"
    )


def _find_named(tensors: Mapping[str, Tensor], _: BaseIndex) -> str | None:
    named = {key: found[1] for key in tensors if (found := re.search(r"\.lora_[AB]\.(.+)\.weight$", key))}
    if len(named) <= _MOST * sum(".lora_" in key for key in tensors):
        return None
    name = next(iter(named.values()))
    return (
        f"{_count(list(named), tensors)} have the adapter's name in them, as the state_dict() of the whole model has: "
        f"save with save_pretrained, or remove `.{name}` from the keys"
    )


def _find_tool(tensors: Mapping[str, Tensor], base: BaseIndex) -> str | None:
    for pattern, what, remedy in _TOOLS:
        keys = [key for key in tensors if re.search(pattern, key.removeprefix(PREFIX))]
        if 2 * len(keys) >= _MOST * len(tensors) and keys:
            return f"{_count(keys, tensors)} have {what}, not PEFT's: {remedy}"
    bare = [key for key in tensors if not key.startswith(PREFIX)]
    if len(bare) <= _MOST * len(tensors):
        return None
    modules = [module for key in bare if (module := _module(key)) is not None]
    if modules and all(_is_in(base, module) for module in modules):
        return f"{_count(bare, tensors)} do not start with {PREFIX}, as save_pretrained writes them: put it before each"
    return f"{_count(bare, tensors)} are no keys of PEFT, which start with {PREFIX}: save with save_pretrained"


def _find_other_place(tensors: Mapping[str, Tensor], base: BaseIndex) -> str | None:
    """Explain modules that the base has under another prefix, or has fewer of."""
    modules = list(
        dict.fromkeys(module for key in tensors if (module := _module(key.removeprefix(PREFIX))) is not None)
    )
    lost = [module for module in modules if not _is_in(base, module)]
    if not lost or len(lost) <= _MOST * len(modules):
        return _find_deeper(lost, modules, base)
    counted = f"{len(lost)} of its {len(modules)} modules, such as {lost[0]},"
    sample = lost[:_SAMPLE]
    for old, new in islice(_shifts(lost[0], base), _TRIES):
        moved = [new + module.removeprefix(old) for module in sample if module.startswith(old)]
        if sum(_is_in(base, module) for module in moved) > 0.9 * len(sample):
            return (
                f"{counted} are in the base under {new + lost[0].removeprefix(old)}: {_explain_shift(old, new, base)}"
            )
    return f"{counted} are not in the base: is this the base that the adapter was trained on?"


def _find_deeper(lost: list[str], modules: list[str], base: BaseIndex) -> str | None:
    """Explain layers beyond the base's last one."""
    last = max((_layer(name) for name in base.kinds), default=-1)
    if not lost or any(_layer(module) <= last for module in lost):
        return None
    depth = 1 + max(_layer(module) for module in modules)
    return f"it was trained on a model of {depth} layers, and this base has {last + 1}: {_PUBLISH_THERE}"


def _shifts(module: str, base: BaseIndex) -> Iterator[tuple[str, str]]:
    """Yield pairs of prefixes that turn `module` into a module of the base, those with the longest common end first."""
    segments = module.split(".")
    for start in range(max(0, len(segments) - _ENDINGS), len(segments)):
        ending = "." + ".".join(segments[start:])
        for name in base.kinds:
            if f".{name}".endswith(ending):
                yield module[: len(module) - len(ending) + 1], f".{name}"[1 : len(name) + 2 - len(ending)]


def _explain_shift(old: str, new: str, base: BaseIndex) -> str:
    kind = base.architecture or "the base"
    if "language_model." in new and "language_model." not in old:
        return f"it was trained on the text model alone, and {kind} has one inside; publish to a tree of the text model"
    if "language_model." in old and "language_model." not in new:
        return f"it was trained on a model that has {kind} inside; publish to a tree of that model"
    if new.startswith(old):
        return f"it was trained on the model without its head (AutoModel), and the base is {kind}; train on {kind}"
    if old.startswith(new):
        return (
            f"it was trained on a model with a head, and the base is the {kind} inside; publish to a tree of that model"
        )
    return "it was trained where the modules have other names; train on the base"


def _find_other_size(tensors: Mapping[str, Tensor], base: BaseIndex) -> str | None:
    """Explain inputs of A and outputs of B that differ from the base's in one way."""
    sizes: Counter[tuple[int, int]] = Counter()
    checked = turned = 0
    for key, tensor in tensors.items():
        module, factor = _module(key.removeprefix(PREFIX)), _FACTOR.search(key)
        if module is None or factor is None or factor[1] or not _is_plain(module, base, tensor):
            continue
        known = base_name(module, base.kinds)
        assert known is not None
        weight = base.parameters[f"{known.name}.weight"]
        out, into = weight.shape[::-1] if weight.kind == "Conv1D" else weight.shape
        expected, actual, other = (into, *tensor.shape[::-1]) if factor[2] == "A" else (out, *tensor.shape)
        checked += 1
        turned += expected != actual and expected == other
        if expected != actual:
            sizes[actual, expected] += 1
    if turned and turned >= _MOST * sum(sizes.values()):
        return (
            f"{turned} of {checked} factors have the base's size on the other side: A is [rank, inputs] and B is "
            "[outputs, rank], so transpose them, or give each its own name"
        )
    if not sizes or sum(sizes.values()) <= _SOME * checked:
        return None
    (actual, expected), _ = sizes.most_common(1)[0]
    return (
        f"{sum(sizes.values())} of {checked} factors have other sizes than the base's layers: most were trained for "
        f"the size {actual} where this base has {expected}; {_PUBLISH_THERE}"
    )


def _is_plain(module: str, base: BaseIndex, tensor: Tensor) -> bool:
    known = base_name(module, base.kinds)
    weight = None if known is None else base.parameters.get(f"{known.name}.weight")
    is_matrix = weight is not None and len(weight.shape) == 2 == len(tensor.shape)
    return is_matrix and weight is not None and weight.kind not in ("Embedding", *CONVOLUTIONS)


def _module(name: str) -> str | None:
    """Return the module of a factor's key, or None for another tensor."""
    found = _FACTOR.search(name)
    return name[: found.start()] if found else None


def _is_in(base: BaseIndex, module: str) -> bool:
    module = base.present_layer(module)
    known = base_name(module, base.kinds)
    return known is not None or base.renamed_to(module) is not None


def _layer(name: str) -> int:
    return max((int(number) for number in _NUMBER.findall(f"{name}.")), default=-1)
