"""A checkpoint's ties, taken apart where a chain changes one name of a tensor otherwise than another."""

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
    """The names that need a tensor of their own, by the stored tensor whose value they start from; none for no tie.

    Where there are some, `directory`/config.json is made to say that word embeddings are not tied, and the model that
    it then describes is built, without memory, to see that it ties no names which the chain changes differently.
    Raises Invalid where it does, and where its forward reads that field and so computes something else.
    """
    firsts = {parameter.name: parameter.tied_to or parameter.name for parameter in manifest.parameters}
    if not (apart := _apart(firsts, programs)):
        return {}
    model = _untied(directory, firsts, programs)
    if model is None:
        raise _tied(apart, manifest)
    if reads_tie(model):
        raise Invalid(
            f"the base ties {listed(apart, limit=3)}, the chain changes only one name of them or each in another way, "
            f"and the forward of {manifest.architecture} computes something else where config.json says "
            f"{_TIE}: false: put the chain on a live model with Composer, or flatten it"
        )
    return _added(base, firsts, ties(model))


def reads_tie(model: nn.Module) -> bool:
    """Tells whether the forward of the model, or of anything in it, asks whether word embeddings are tied."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    forwards = [inspect.unwrap(vars(cls)["forward"]) for cls in classes if "forward" in vars(cls)]
    return any(_TIE in _words(forward.__code__) for forward in forwards if inspect.isfunction(forward))


def _words(code: CodeType) -> Iterator[object]:
    """The names and constants of a function and of those inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        yield from _words(constant) if isinstance(constant, CodeType) else (constant,)


def check_tied(manifest: BaseManifest, programs: Mapping[str, Program]) -> None:
    """Raises Invalid where the chain changes the names of one tied tensor in different ways."""
    firsts = {parameter.name: parameter.tied_to or parameter.name for parameter in manifest.parameters}
    if apart := _apart(firsts, programs):
        raise _tied(apart, manifest)


def _tied(apart: list[str], manifest: BaseManifest) -> Invalid:
    return Invalid(
        f"the base ties {listed(apart, limit=3)}, the chain changes only one name of them or each in another way, and "
        f"{manifest.architecture} cannot be written without that tie: put the chain on a live model with Composer"
    )


def _apart(firsts: Mapping[str, str], programs: Mapping[str, Program]) -> list[str]:
    """The ties, as name and name, that hold names with different edits."""
    return [" and ".join(group) for group in _groups(firsts) if not _is_alike(group, programs)]


def _untied(directory: Path, firsts: Mapping[str, str], programs: Mapping[str, Program]) -> nn.Module | None:
    """The untied model, without values, whose config is then in `directory`; None where none will do."""
    path = directory / _CONFIG
    written = json.loads(path.read_text(encoding="utf-8"))
    for document in (written | {_TIE: False}, _everywhere(written)):
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            model = meta_model(directory)
        except Invalid:
            continue
        found = ties(model)
        if found.keys() == firsts.keys() and not _apart(found, programs):
            return model
    return None


def _everywhere(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the tie denied in it and in every config inside it."""
    configs = {name: value for name, value in document.items() if isinstance(value, dict) and "model_type" in value}
    return {**document, **{name: _everywhere(value) for name, value in configs.items()}, _TIE: False}


def _added(base: Checkpoint, firsts: Mapping[str, str], remaining: Mapping[str, str]) -> dict[str, list[str]]:
    """One name of each remaining tie that the base stores no tensor for, by the tensor that it stores instead."""
    stored, added = base.shard_of, defaultdict(list)
    for group in _groups(remaining):
        if stored.keys().isdisjoint(group):
            source = next(name for name in firsts if name in stored and firsts[name] == firsts[group[0]])
            added[source].append(group[0])
    return dict(added)


def _groups(firsts: Mapping[str, str]) -> list[list[str]]:
    groups = defaultdict(list)
    for name, first in firsts.items():
        groups[first].append(name)
    return list(groups.values())


def _is_alike(names: Sequence[str], programs: Mapping[str, Program]) -> bool:
    """Tells whether each of the names is edited in the same way, or none is."""
    if len(names) == 1 or programs.keys().isdisjoint(names):
        return True
    edits = [programs[name].edits if name in programs else () for name in names]
    return all(alike(edits[0], other) for other in edits[1:])


Added = Mapping[str, list[str]]  # stored tensor → the names behind it


def widened_head(shard: Shard, added: Added) -> bytes:
    """The shard up to its first tensor: its own header where nothing is added to it.

    An added tensor is as large as the one before it and of its dtype, so whatever follows stays aligned.
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
    """Writes the index at `path` again with the added tensors in it, and in its totals."""
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
