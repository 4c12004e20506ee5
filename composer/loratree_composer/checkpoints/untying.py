"""A checkpoint's ties (one tensor under several names), taken apart if a chain changes the names differently."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from loratree_composer.arithmetic.edits import alike
from loratree_composer.arithmetic.program import Program
from loratree_composer.base.meta_model import meta_model
from loratree_composer.base.sharing import select_tied, ties
from loratree_composer.base.untied import TIE
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.checkpoint import Checkpoint, Shard

_CONFIG: Final = "config.json"


def untie(
    base: Checkpoint, manifest: BaseManifest, programs: Mapping[str, Program], directory: Path, *, untied: bool
) -> dict[str, list[str]]:
    """Return the names that need a tensor of their own, by the stored tensor that they are copied from.

    Returns {} unless the chain takes ties apart: then set tie_word_embeddings to false in `directory`/config.json.
    Raises Invalid if that config would not give the manifest's remaining ties, or not take all of these ties apart.
    """
    if not must_untie(manifest, programs, untied=untied):
        return {}
    deny_ties(directory)
    remaining = ties(meta_model(directory, base))
    if select_tied(remaining) != (manifest.remaining_ties or {}):
        raise _cannot_untie(manifest, _list_tied(manifest))
    return _find_added(base, manifest, remaining)


def deny_ties(directory: Path) -> None:
    """Set tie_word_embeddings to false in `directory`/config.json, and in every config inside it."""
    path = directory / _CONFIG
    config = _deny_in(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def must_untie(manifest: BaseManifest, programs: Mapping[str, Program], *, untied: bool) -> bool:
    """Return whether the chain changes names that the base ties differently, or `untied` says that a level does.

    Raises Invalid if names that would remain tied are changed differently.
    """
    if not (untied or _find_broken_ties(manifest, programs)):
        return False
    if (broken := _find_broken_ties(manifest.untied(), programs)) or manifest.remaining_ties == manifest.ties():
        raise _cannot_untie(manifest, broken or _list_tied(manifest))
    return True


def _cannot_untie(manifest: BaseManifest, broken: list[str]) -> Invalid:
    return Invalid(
        f"the chain changes names differently that the base ties ({listed(broken, limit=3)}), and "
        f"{manifest.architecture} cannot be written without that tie, or would compute something else: put the chain "
        "on a live model with Composer, or flatten it"
    )


def _list_tied(manifest: BaseManifest) -> list[str]:
    return [" and ".join(names) for names in manifest.tied_names()]


def _find_broken_ties(manifest: BaseManifest, programs: Mapping[str, Program]) -> list[str]:
    """Return the ties that hold names with different edits, each as 'name and name'."""
    return [" and ".join(names) for names in manifest.tied_names() if not _are_alike(names, programs)]


def _deny_in(document: Mapping[str, Any]) -> dict[str, Any]:
    configs = {name: value for name, value in document.items() if isinstance(value, dict) and "model_type" in value}
    return {**document, **{name: _deny_in(value) for name, value in configs.items()}, TIE: False}


def _find_added(base: Checkpoint, manifest: BaseManifest, remaining: Mapping[str, str]) -> dict[str, list[str]]:
    """Return one name of each remaining group that has no stored tensor, by the stored tensor that has its value."""
    stored, added = manifest.locate(base.shard_of), defaultdict(list)
    firsts = {parameter.name: parameter.tied_to or parameter.name for parameter in manifest.parameters}
    for group in _group_names(remaining):
        if set(stored.values()).isdisjoint(group):
            source = next(name for name, target in stored.items() if firsts[target] == firsts[group[0]])
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
