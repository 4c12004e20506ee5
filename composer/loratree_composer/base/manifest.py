"""The manifest of a base, made from a checkpoint or from a live model."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loratree_composer.base.converted import is_converted, load_model
from loratree_composer.base.layer_kind import kind_of
from loratree_composer.base.past_forward import is_read_past_forward
from loratree_composer.base.sharing import tensors, ties
from loratree_composer.base.stored_tensor import digest_of, type_of
from loratree_composer.base.untied import remaining_ties
from loratree_registry.core.manifest import PAST_FORWARD, BaseManifest, Parameter, check_manifest
from loratree_registry.errors import Invalid, NotFound, listed
from loratree_registry.tensor_files.checkpoint import RESAVE, TensorType, open_checkpoint
from loratree_registry.tensor_files.comparison import TensorSource

# The errors that transformers and the code of its models raise for a config that makes no sense.
_UNBUILDABLE = (OSError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, ImportError, RuntimeError)


def read_base(directory: Path) -> BaseManifest:
    """Return the manifest of a checkpoint that `save_pretrained` wrote, without running code from its directory.

    The model is built on the meta device only. If transformers renames, fuses or computes tensors when it loads the
    checkpoint (Mixtral, Llava, GPT-NeoX, Marian), the base is the loaded model, and all of it is loaded into memory.

    Raises NotFound if there is no such directory, Invalid if it holds no safetensors checkpoint of a known model.
    """
    if not directory.is_dir():
        raise NotFound(
            f"{directory} is not a directory: expected the folder of a downloaded model, not a name on a hub"
        )
    model, checkpoint = meta_model(directory), open_checkpoint(directory)
    try:
        if is_converted(model, checkpoint):
            return manifest_of_module(load_model(directory, type(model)))
        return manifest_of(model, checkpoint)
    except Invalid as error:
        raise Invalid(f"{directory} is not a usable base: {error}") from error


def meta_model(directory: Path) -> nn.Module:
    """Build the model of config.json on the meta device, which has names and shapes but no memory. Raises Invalid."""
    architecture = _read_architecture(directory)
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    model_class = getattr(transformers, architecture, None)
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise Invalid(f"{directory} has the architecture {architecture!r}, which this transformers does not know")
    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = model_class(config)
        model.tie_weights()
    except (*_UNBUILDABLE, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise Invalid(f"{directory} has a config.json that {architecture} cannot be built from: {reason}") from error
    return model


def manifest_of(module: nn.Module, source: TensorSource) -> BaseManifest:
    """Return the manifest of `module` with values from `source`, which may store a tied tensor under any of its names.

    Raises Invalid, listing every missing or unexpected name, every other shape, and every copy of a tied tensor that
    differs from the first copy.
    """
    expected, types, groups = tensors(module), source.types(), _group_tied_names(module)
    names = {first: [name for name in group if name in types] for first, group in groups.items()}
    _check_names(module, expected, types, names)
    stored = {first: present[0] for first, present in names.items()}
    digests = {first: source.sha256(name) for first, name in stored.items()}
    _check_copies(source, digests, names)
    parameters = [
        Parameter(
            name=name,
            shape=types[stored[first]].shape,
            dtype=types[stored[first]].dtype,
            kind=_find_kind(module, name.rpartition(".")[0]),
            tied_to=None if name == first else first,
            sha256=digests[first] if name == first else None,
        )
        for first, group in groups.items()
        for name in group
    ]
    return check_manifest(
        BaseManifest(
            parameters=tuple(sorted(parameters, key=lambda parameter: parameter.name)),
            architecture=type(module).__name__,
            remaining_ties=remaining_ties(module),
            vocabulary_size=_read_vocabulary_size(module),
        )
    )


def manifest_of_module(module: nn.Module) -> BaseManifest:
    """Return the manifest of a live module, hashing one tensor at a time from the device that holds it."""
    return manifest_of(module, _Live(module))


class _Live:
    """A source of tensor types and digests, read from a live module."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = tensors(module)
        empty = sorted(name for name, tensor in self._tensors.items() if tensor.is_meta)
        if empty:
            raise Invalid(
                f"the model holds no values for {listed(empty, limit=3)}: load all of it onto real devices first"
            )

    def types(self) -> dict[str, TensorType]:
        return {name: type_of(tensor) for name, tensor in self._tensors.items()}

    def sha256(self, name: str) -> str:
        return digest_of(self._tensors[name])


def _read_architecture(directory: Path) -> str:
    try:
        config: Any = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Invalid(f"{directory} has no config.json: expected a folder that save_pretrained wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise Invalid(f"{directory} has a config.json that cannot be read: {error}") from error
    names = config.get("architectures") if isinstance(config, dict) else None
    if not (isinstance(names, list) and len(names) == 1 and isinstance(names[0], str)):
        raise Invalid(f"{directory} has a config.json that names no single architecture: {RESAVE}")
    if config.get("quantization_config") is not None:
        raise Invalid(f"{directory} is quantised, and deltas need floating-point weights: take the original model")
    return names[0]


def _find_kind(module: nn.Module, layer: str) -> str:
    """Return the kind of a layer, with `past forward` in its brackets if the model reads its weight without a call."""
    kind = kind_of(module.get_submodule(layer))
    if not is_read_past_forward(module, layer):
        return kind
    return f"{kind[:-1]}, {PAST_FORWARD})" if kind.endswith(")") else f"{kind}({PAST_FORWARD})"


def _group_tied_names(module: nn.Module) -> dict[str, list[str]]:
    groups = defaultdict(list)
    for name, first in ties(module).items():
        groups[first].append(name)
    return dict(groups)


def _check_names(
    module: nn.Module, expected: Mapping[str, Tensor], types: Mapping[str, TensorType], names: Mapping[str, list[str]]
) -> None:
    problems = [f"{first} is missing" for first, present in names.items() if not present]
    problems += [f"{name} is unexpected" for name in sorted(set(types) - set(expected))]
    for name in (name for present in names.values() for name in present):
        if types[name].shape != tuple(expected[name].shape):
            problems.append(f"{name} is {list(types[name].shape)}, expected {list(expected[name].shape)}")
    if problems:
        raise Invalid(f"its tensors are not those of {type(module).__name__}: {listed(problems, limit=5)}; {RESAVE}")


def _check_copies(source: TensorSource, digests: Mapping[str, str], names: Mapping[str, list[str]]) -> None:
    different = [
        f"{name} and {present[0]}"
        for first, present in names.items()
        for name in present[1:]
        if source.sha256(name) != digests[first]
    ]
    if different:
        raise Invalid(
            f"the model ties tensors that are stored with different values: {listed(different, limit=3)}; {RESAVE}"
        )


def _read_vocabulary_size(module: nn.Module) -> int | None:
    config: Any = getattr(module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None)
    return size if isinstance(size, int) else None
