"""A checkpoint's ties (one tensor under several names), taken apart if a chain changes the names differently."""

import inspect
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, Final

from torch import nn

from loratree_composer.arithmetic.edits import alike
from loratree_composer.arithmetic.program import Program
from loratree_composer.base.manifest import meta_model
from loratree_composer.base.sharing import ties
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.checkpoint import Checkpoint, Shard

_CONFIG: Final = "config.json"
_TIE: Final = "tie_word_embeddings"


def untie(
    base: Checkpoint, manifest: BaseManifest, programs: Mapping[str, Program], directory: Path
) -> dict[str, list[str]]:
    """Return the names that need a tensor of their own, by the stored tensor that they are copied from.

    If there are such names, set tie_word_embeddings to false in `directory`/config.json, and build the model of that
    config, without memory. Raises Invalid if the model still ties names that the chain changes in different ways, or
    if its forward reads tie_word_embeddings, and so would compute something else.
    """
    firsts = {parameter.name: parameter.tied_to or parameter.name for parameter in manifest.parameters}
    if not (broken := _find_broken_ties(firsts, programs)):
        return {}
    model = _build_untied(directory, firsts, programs)
    if model is None:
        raise _cannot_untie(broken, manifest)
    if reads_tie(model):
        raise Invalid(
            f"the base ties {listed(broken, limit=3)}, the chain changes only some of these names or each "
            f"differently, and the forward of {manifest.architecture} computes something else if config.json says "
            f"{_TIE}: false: put the chain on a live model with Composer, or flatten it"
        )
    return _find_added(base, firsts, ties(model))


def reads_tie(model: nn.Module) -> bool:
    """Return whether the forward of the model, or of a module in it, reads tie_word_embeddings."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    forwards = [inspect.unwrap(vars(cls)["forward"]) for cls in classes if "forward" in vars(cls)]
    return any(_TIE in _find_words(forward.__code__) for forward in forwards if inspect.isfunction(forward))


def _find_words(code: CodeType) -> Iterator[object]:
    """Yield the names and constants in a function's code, and in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        yield from _find_words(constant) if isinstance(constant, CodeType) else (constant,)


def check_tied(manifest: BaseManifest, programs: Mapping[str, Program]) -> None:
    """Raise Invalid if the chain changes the names of one tied tensor in different ways."""
    firsts = {parameter.name: parameter.tied_to or parameter.name for parameter in manifest.parameters}
    if broken := _find_broken_ties(firsts, programs):
        raise _cannot_untie(broken, manifest)


def _cannot_untie(broken: list[str], manifest: BaseManifest) -> Invalid:
    return Invalid(
        f"the base ties {listed(broken, limit=3)}, the chain changes only some of these names or each differently, and "
        f"{manifest.architecture} cannot be written without that tie: put the chain on a live model with Composer"
    )


def _find_broken_ties(firsts: Mapping[str, str], programs: Mapping[str, Program]) -> list[str]:
    """Return the ties that hold names with different edits, each as 'name and name'."""
    return [" and ".join(group) for group in _group_names(firsts) if not _are_alike(group, programs)]


def _build_untied(directory: Path, firsts: Mapping[str, str], programs: Mapping[str, Program]) -> nn.Module | None:
    """Return the untied model, without values, and leave its config in `directory`; None if no config unties it."""
    path = directory / _CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    for document in (config | {_TIE: False}, _deny_ties(config)):
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            model = meta_model(directory)
        except Invalid:
            continue
        remaining = ties(model)
        if remaining.keys() == firsts.keys() and not _find_broken_ties(remaining, programs):
            return model
    return None


def _deny_ties(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with tie_word_embeddings false in it and in every config inside it."""
    configs = {name: value for name, value in document.items() if isinstance(value, dict) and "model_type" in value}
    return {**document, **{name: _deny_ties(value) for name, value in configs.items()}, _TIE: False}


def _find_added(base: Checkpoint, firsts: Mapping[str, str], remaining: Mapping[str, str]) -> dict[str, list[str]]:
    """Return one name of each remaining group that has no stored tensor, by the stored tensor that has its value."""
    stored, added = base.shard_of, defaultdict(list)
    for group in _group_names(remaining):
        if stored.keys().isdisjoint(group):
            source = next(name for name in firsts if name in stored and firsts[name] == firsts[group[0]])
            added[source].append(group[0])
    return dict(added)


def _group_names(firsts: Mapping[str, str]) -> list[list[str]]:
    groups = defaultdict(list)
    for name, first in firsts.items():
        groups[first].append(name)
    return list(groups.values())


def _are_alike(names: Sequence[str], programs: Mapping[str, Program]) -> bool:
    """Return whether all the names are edited in the same way, or no name is edited."""
    if len(names) == 1 or programs.keys().isdisjoint(names):
        return True
    edits = [programs[name].edits if name in programs else () for name in names]
    return all(alike(edits[0], other) for other in edits[1:])


Added = Mapping[str, list[str]]  # stored tensor → the names that get a copy after it


def widened_head(shard: Shard, added: Added) -> bytes:
    """Return the shard's bytes before its first tensor: unchanged if no tensor is added to the shard.

    An added tensor has the size and dtype of the tensor before it, so every later tensor stays aligned.
    """
    tensors = shard.header.tensors
    if added.keys().isdisjoint(tensors):
        return shard.head()
    document: dict[str, object] = {"__metadata__": shard.header.metadata} if shard.header.metadata else {}
    start = 0
    for stored, tensor in tensors.items():
        for name in (stored, *added.get(stored, ())):
            end = start + tensor.end - tensor.start
            document[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
            start = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def widen_index(path: Path, base: Checkpoint, added: Added) -> None:
    """Add the new tensors to the index at `path`, and to the totals in it."""
    document = json.loads(path.read_text(encoding="utf-8"))
    totals = document.get("metadata", {})
    for stored, names in added.items():
        shard = base.shard_of[stored]
        tensor = shard.header.tensors[stored]
        for name in names:
            document["weight_map"][name] = shard.path.name
            if "total_size" in totals:
                totals["total_size"] += tensor.end - tensor.start
            if "total_parameters" in totals:
                totals["total_parameters"] += math.prod(tensor.shape)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
