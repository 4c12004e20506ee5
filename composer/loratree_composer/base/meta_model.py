"""The model of a config.json that nobody vouches for: built without memory, within what its checkpoint holds."""

import contextlib
import functools
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import nn
from torch.nn.modules import module as registrations

from loratree_composer.base.architectures import explain_architectures
from loratree_composer.base.sharing import tensors
from loratree_registry.core.records import ADAPTER_CONFIG
from loratree_registry.core.text import shortened
from loratree_registry.disk.plain_files import read_plain
from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.checkpoint import RESAVE, Checkpoint

CONFIG: Final = "config.json"
MAX_CONFIG: Final = 16 * 1024 * 1024  # bytes; a config with the labels of 21,000 classes has 1.5 MiB

# The errors that transformers and the code of its models raise for a config that makes no sense.
_UNBUILDABLE = (OSError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, ImportError, RuntimeError)

# What transformers would fetch, run or read in place of the checked files. None of it says what the weights are.
_REFERENCES: Final = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "use_kernels",
        "kernel_config",
        "fusion_config",
        "distributed_config",
        "configuration_files",
        "transformers_weights",
        "use_pretrained_backbone",
        "name_or_path",
        "_name_or_path",
    }
)
_QUANTISED: Final = ("quantization_config", "compression_config")
_ON_A_HUB: Final = ("hf-hub:", "hf_hub:", "local-dir:")  # how timm names a model that it fetches or reads elsewhere

# Numbers that count no layers and no rows: how far positions reach, how fast they turn, which token is special.
_UNBOUNDED: Final = re.compile(
    r"positions?|length|ctx|context|seq|sequence|seqlen|window|theta|base|rate|freq|frequency|seed|ids?|tokens?|index|"
    r"chunks?|pixels?|len|floor|samples?|offset"
)
_COUNTS: Final = re.compile(r"(layer|block|stage|depth|head|expert)s?")
_SMALLEST_LIMIT: Final = 65_536
_LONGEST_SUM: Final = 64  # a list of sizes may add up to this many times the largest
_PARTS_PER_TENSOR: Final = 16  # modules, parameters and buffers for each stored tensor; BERT has 2, EfficientNet 3
_SMALLEST_PARTS: Final = 4096
_VALUES_BEYOND: Final = 1 << 26  # values of tables that a model computes, such as causal masks


def read_config(directory: Path) -> dict[str, Any]:
    """Return config.json without the names of code, kernels and other files in it. Raises Invalid.

    It must name one architecture and describe no quantised weights.
    """
    path = directory / CONFIG
    if not path.exists() and (directory / ADAPTER_CONFIG).exists():
        raise Invalid(
            f"{directory} holds an adapter and no model (config.json is missing): give the folder of its base, and "
            f"then `loratree publish {directory} PATH`"
        )
    if not path.exists():
        raise Invalid(f"{directory} has no config.json: expected a folder that save_pretrained wrote")
    try:
        config = _without_references(json.loads(read_plain(path, limit=MAX_CONFIG, remedy=RESAVE)))
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{directory} has a config.json that cannot be read: {shortened(str(error))}") from error
    described: dict[str, Any] = config if isinstance(config, dict) else {}
    names = described.get("architectures")
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise Invalid(f"{directory} has a config.json that names {explain_architectures(described)}")
    for _, value in _walk(described):
        if not isinstance(value, dict):
            continue
        if any(value.get(key) is not None for key in _QUANTISED):
            raise Invalid(f"{directory} is quantised, and deltas need floating-point weights: take the original model")
        if name := _find_elsewhere(value):
            raise Invalid(f"{directory} has a config.json that takes {name!a:.100} from a hub: {RESAVE}")
    return described


def meta_model(directory: Path, checkpoint: Checkpoint) -> nn.Module:
    """Build the model of config.json on the meta device, which has names and shapes but no memory. Raises Invalid.

    `checkpoint` has the weights that the config describes: a config that asks for far more layers, rows or values is
    refused before they are made. No code but that of transformers runs, and nothing is fetched.
    """
    document = read_config(directory)
    _check_sizes(directory, document, checkpoint)
    architecture: str = document["architectures"][0]
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    with without_kernels():
        model_class = getattr(transformers, architecture, None)
        if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
            raise Invalid(f"{directory} has the architecture {architecture!r}, which this transformers does not know")
        try:
            config = _parse(document)
            with torch.device("meta"), _bounded_parts(directory, checkpoint):
                model = model_class(config)
            model.tie_weights()
        except (*_UNBUILDABLE, StrictDataclassError) as error:
            reason = shortened(" ".join(str(error).split()), 240)
            raise Invalid(
                f"{directory} has a config.json that {architecture} cannot be built from: {reason}"
            ) from error
    _check_values(directory, model, checkpoint)
    return model


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """Let transformers fetch no kernel from a hub in this thread. Without one, its models compute in plain torch."""
    _guard_kernels()
    token = _builds.set(True)
    try:
        yield
    finally:
        _builds.reset(token)


_builds: ContextVar[bool] = ContextVar("loratree builds a model", default=False)


@functools.cache
def _guard_kernels() -> None:
    from transformers.integrations import hub_kernels

    hub: Any = hub_kernels
    fetch = hub.get_kernel

    @functools.wraps(fetch)
    def get_kernel(*args: Any, **options: Any) -> Any:
        if _builds.get():
            raise ImportError("loratree builds models without kernels from a hub")
        return fetch(*args, **options)

    hub.get_kernel = get_kernel


def _parse(document: Mapping[str, Any]) -> Any:
    """Return the config of transformers for `document`."""
    from transformers import AutoConfig

    with TemporaryDirectory(prefix="loratree-") as folder:  # nothing is in it that transformers could read or run
        (Path(folder) / CONFIG).write_text(json.dumps(document), encoding="utf-8")
        config: Any = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.name_or_path = ""
    return config


def _without_references(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_references(item) for key, item in value.items() if key not in _REFERENCES}
    return [_without_references(item) for item in value] if isinstance(value, list) else value


def _walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value in a config with its nearest key."""
    yield key, value
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _walk(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item, key)


def _find_elsewhere(config: Mapping[str, Any]) -> str | None:
    """Return the name by which a config takes a model from a hub, or from another folder; None if it takes none."""
    for key in ("backbone", "architecture"):
        name = config.get(key)
        if isinstance(name, str) and (name.startswith(_ON_A_HUB) or "/" in name):
            return name
    # Transformers looks a backbone up on the hub if it is given by its name alone.
    is_described = config.get("model_type") == "timm_backbone" or isinstance(config.get("backbone_config"), dict)
    backbone = config.get("backbone")
    return backbone if isinstance(backbone, str) and not is_described else None


def _check_sizes(directory: Path, document: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    types = checkpoint.types().values()
    limit = max(_SMALLEST_LIMIT, len(types), *(size for kind in types for size in kind.shape))
    for key, value in _walk(document):
        if _is_unbounded(key):
            continue
        numbers = [item for item in (value if isinstance(value, list) else [value]) if type(item) is int]
        if any(number > limit for number in numbers) or sum(numbers) > _LONGEST_SUM * limit:
            number = max(numbers) if max(numbers) > limit else sum(numbers)
            raise Invalid(
                f"{directory} has a config.json that asks for more than the checkpoint holds: {key[:60]} is "
                f"{str(number)[:30]}, and with {len(types)} tensors at most {limit} is taken; give the config.json "
                "that belongs to the weights"
            )


def _is_unbounded(key: str) -> bool:
    words = key.lower().split("_")
    return any(map(_UNBOUNDED.fullmatch, words)) and not any(map(_COUNTS.fullmatch, words))


@contextlib.contextmanager
def _bounded_parts(directory: Path, checkpoint: Checkpoint) -> Iterator[None]:
    """Raise Invalid as soon as this thread makes more modules and tensors than the checkpoint can be meant for."""
    limit = _PARTS_PER_TENSOR * len(checkpoint.types()) + _SMALLEST_PARTS
    made, thread = 0, threading.get_ident()

    def count(*_: object) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > limit:
            raise Invalid(
                f"{directory} has a config.json that asks for more than the checkpoint holds: it describes more than "
                f"{limit} modules and parameters, for {len(checkpoint.types())} tensors; give the config.json that "
                "belongs to the weights"
            )

    hooks = [
        registrations.register_module_module_registration_hook(count),
        registrations.register_module_parameter_registration_hook(count),
        registrations.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_values(directory: Path, model: nn.Module, checkpoint: Checkpoint) -> None:
    """Check how many values the model would have in memory. Raises Invalid."""
    held = {id(tensor): tensor.numel() for tensor in (*tensors(model).values(), *model.buffers())}
    stored = sum(_count(kind.shape) for kind in checkpoint.types().values())
    if (asked := sum(held.values())) > 2 * stored + _VALUES_BEYOND:
        raise Invalid(
            f"{directory} has a config.json that asks for more than the checkpoint holds: {asked} values, where the "
            f"checkpoint has {stored}; give the config.json that belongs to the weights"
        )


def _count(shape: tuple[int, ...]) -> int:
    return functools.reduce(lambda product, size: product * size, shape, 1)
