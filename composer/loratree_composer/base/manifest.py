"""The manifest of a base, made from a checkpoint or from a live model."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from loratree_composer.base.casts import Tensors, cast_digests
from loratree_composer.base.converted import load_model
from loratree_composer.base.layer_kind import kind_of
from loratree_composer.base.layout import Layout, layout_of
from loratree_composer.base.meta_model import meta_model, read_config
from loratree_composer.base.older_names import older_names
from loratree_composer.base.past_forward import is_read_past_forward
from loratree_composer.base.sharing import tensors, ties
from loratree_composer.base.stored_tensor import DTYPES, digest_of, type_of
from loratree_composer.base.token_ties import find_embedding, find_token_ties
from loratree_composer.base.untied import remaining_ties
from loratree_registry.core.manifest import PAST_FORWARD, BaseManifest, Parameter, check_manifest
from loratree_registry.core.progress import BYTES, Counter, Progress, silent
from loratree_registry.core.records import ADAPTER_CONFIG
from loratree_registry.disk.plain_files import check_model_folder
from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.causes import WRAPPERS
from loratree_registry.peft_format.names import PREFIX
from loratree_registry.tensor_files.checkpoint import RESAVE, Checkpoint, TensorType, open_checkpoint

_PIECE: Final = 1 << 20  # values


def read_base(directory: Path, *, progress: Progress = silent) -> BaseManifest:
    """Return the manifest of a checkpoint that transformers loads, without running code from its directory.

    The base is what transformers loads: tensors under the names of the model, whatever the checkpoint calls them, and
    without the tensors that the model has no place for. The model is built on the meta device only. If transformers
    fuses or computes tensors when it loads the checkpoint (Mixtral, GPT-NeoX, Marian), all of it is loaded into memory.

    Raises NotFound if there is no such directory, Invalid if it holds no safetensors checkpoint of a known model.
    """
    check_model_folder(directory)
    progress(f"reading {directory}", 0, 0, BYTES)
    read_config(directory)  # before the weights, because a folder without a config holds no model at all
    checkpoint = open_checkpoint(directory)
    model = meta_model(directory, checkpoint)
    if os.path.lexists(directory / ADAPTER_CONFIG):
        raise Invalid(
            f"{directory} holds an adapter beside the model ({ADAPTER_CONFIG}), and transformers would load both: "
            "move the adapter's files to a folder of their own"
        )
    try:
        layout = layout_of(model, checkpoint.types())
        if layout.is_converted:
            progress(f"loading {directory}", 0, 0, BYTES)
            return manifest_of_module(load_model(checkpoint, model), progress=progress)
        named = Named(checkpoint.telling(progress, f"hashing {directory}"), layout)
        manifest = manifest_of(model, named, leftovers=layout.leftovers)
        return manifest.with_layout(layout.names, layout.leftovers)
    except Invalid as error:
        raise Invalid(f"{directory} is not a usable base: {error}", details=error.details) from error


def fit_layout(manifest: BaseManifest, checkpoint: Checkpoint) -> BaseManifest:
    """Return the manifest with the names of `checkpoint`, which may hold the base under names that it does not know."""
    if set(manifest.locate(checkpoint.types()).values()) <= manifest.by_name().keys():
        return manifest
    layout = layout_of(meta_model(checkpoint.directory, checkpoint), checkpoint.types())
    return manifest if layout.is_converted else manifest.with_layout(layout.names, layout.leftovers)


def manifest_of(module: nn.Module, source: Tensors, *, leftovers: Sequence[str] = ()) -> BaseManifest:
    """Return the manifest of `module` with values from `source`, which may store a tied tensor under any of its names.

    If `source` has several names of a tied tensor with different values, the names are no tie: so transformers loads
    them. Raises Invalid, listing every missing name (beside the `leftovers`, one of which may be meant), every other
    shape, and every copy of a tied tensor that differs although the model's own code shares it.
    """
    expected, types, groups = tensors(module), source.types(), _group_tied_names(module)
    _check_names(expected, types, groups, leftovers)
    digests = {name: source.sha256(name) for group in groups.values() for name in group if name in types}
    parameters = []
    for names in (part for group in groups.values() for part in _split(module, group, digests)):
        stored = next(name for name in names if name in types)
        for name in names:
            is_first = name == names[0]
            parameters.append(
                Parameter(
                    name=name,
                    shape=types[stored].shape,
                    dtype=types[stored].dtype,
                    kind=_find_kind(module, name.rpartition(".")[0]),
                    tied_to=None if is_first else names[0],
                    sha256=digests[stored] if is_first else None,
                )
            )
    firsts = {parameter.name: parameter.tied_to or parameter.name for parameter in parameters}
    remaining = {name: first for name, first in remaining_ties(module).items() if firsts[name] == firsts[first]}
    older, embedding = older_names(module), find_embedding(module)
    return check_manifest(
        BaseManifest(
            parameters=tuple(sorted(parameters, key=lambda parameter: parameter.name)),
            architecture=type(module).__name__,
            remaining_ties=remaining,
            casts=cast_digests(module, source, firsts, types),
            input_embedding=embedding if f"{embedding}.weight" in firsts else None,
            token_ties=tuple(name for name in find_token_ties(module) if f"{name}.weight" in firsts),
            older_modules=older.known or None,
            lost_modules=older.unknown or None,
            expert_layers=older.experts,
            vocabulary_size=_read_vocabulary_size(module),
        )
    )


def manifest_of_module(module: nn.Module, *, progress: Progress = silent) -> BaseManifest:
    """Return the manifest of a live module, hashing one tensor at a time from the device that holds it."""
    return manifest_of(module, _Live(module, progress))


@dataclass(frozen=True)
class Named:
    """The tensors of a checkpoint under the names that the model has for them."""

    checkpoint: Checkpoint
    layout: Layout

    def types(self) -> dict[str, TensorType]:
        """Return every tensor's dtype code and shape, by the model's name."""
        types = self.checkpoint.types()
        return {name: types[stored] for stored, name in self.layout.names.items()}

    def sha256(self, name: str) -> str:
        """Return the digest over one tensor's bytes."""
        return self.checkpoint.sha256(self._stored[name])

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Read the values of one tensor to the CPU, a chunk of the file at a time."""
        shard = self.checkpoint.shard_of[self._stored[name]]
        dtype = DTYPES[shard.type(self._stored[name]).dtype]
        yield from (torch.frombuffer(chunk, dtype=dtype) for chunk in shard.chunks(self._stored[name]))

    @cached_property
    def _stored(self) -> dict[str, str]:
        return {name: stored for stored, name in self.layout.names.items()}


class _Live:
    """A source of tensor types and digests, read from a live module."""

    def __init__(self, module: nn.Module, progress: Progress) -> None:
        self._tensors = tensors(module)
        self._counter = Counter(progress, "hashing the model", len(self._tensors), "tensors")
        empty = sorted(name for name, tensor in self._tensors.items() if tensor.is_meta)
        if empty:
            raise Invalid(
                f"the model holds no values for {listed(empty, limit=3)}: load all of it onto real devices first"
            )

    def types(self) -> dict[str, TensorType]:
        return {name: type_of(tensor) for name, tensor in self._tensors.items()}

    def sha256(self, name: str) -> str:
        self._counter.add()
        return digest_of(self._tensors[name])

    def pieces(self, name: str) -> Iterator[Tensor]:
        yield from torch.split(self._tensors[name].detach().reshape(-1), _PIECE)


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


_WRAPPERS: Final = (*(f"{segment}." for segment in WRAPPERS), PREFIX)


def _find_wrapper(stored: Sequence[str], expected: Mapping[str, Tensor]) -> str | None:
    """Return what a wrapper put into most of the names, if they are the model's without it."""
    for wrapper in _WRAPPERS:
        without = [name.replace(wrapper, "") for name in stored if wrapper in name]
        if without and sum(name in expected for name in without) > len(without) // 2:
            return wrapper
    return None


def _check_names(
    expected: Mapping[str, Tensor],
    types: Mapping[str, TensorType],
    groups: Mapping[str, list[str]],
    leftovers: Sequence[str],
) -> None:
    problems = [f"{first} is missing" for first, group in groups.items() if types.keys().isdisjoint(group)]
    if problems and (wrapper := _find_wrapper(leftovers, expected)) is not None:
        raise Invalid(
            f"{len(problems)} of the model's tensors are missing, and the checkpoint has such with `{wrapper}` in "
            "their names: save the model that is inside the wrapper, as its own save_pretrained does"
        )
    problems += [f"{name} is unexpected" for name in (leftovers if problems else ())]
    for name in sorted(types.keys() & expected.keys()):
        if types[name].shape != tuple(expected[name].shape):
            problems.append(f"{name} is {list(types[name].shape)}, expected {list(expected[name].shape)}")
    if problems:
        raise Invalid(
            f"its tensors are not those of the model: {listed(problems, limit=5)}; {RESAVE}", details=problems
        )


def _split(module: nn.Module, group: list[str], digests: Mapping[str, str]) -> list[list[str]]:
    """Split the names of a tied tensor into the names that share a value, as transformers ties them when it loads.

    A name without a value is tied to its source in the model's own table, or else to the first name with a value.
    """
    present = [name for name in group if name in digests]
    sources: Mapping[str, str] = getattr(module, "all_tied_weights_keys", None) or {}
    parts: dict[str, list[str]] = {}
    for name in group:
        holder = name if name in digests else sources.get(name, present[0])
        digest = digests.get(holder, digests[present[0]])
        parts.setdefault(digest, []).append(name)
    known = {*sources, *sources.values()}
    shared = [name for part in list(parts.values())[1:] for name in part if name not in known]
    if shared:
        raise Invalid(
            f"the model shares tensors that are stored with different values: {group[0]} and {shared[0]}; {RESAVE}"
        )
    return list(parts.values())


def _read_vocabulary_size(module: nn.Module) -> int | None:
    config: Any = getattr(module, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None)
    return size if isinstance(size, int) else None
