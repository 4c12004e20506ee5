"""A base whose checkpoint is laid out otherwise than its model, written again with deltas merged in."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from loratree_composer.base import manifest_of_module
from loratree_composer.converted import load_converted, never_saved, save_converted
from loratree_composer.merge import merge_into
from loratree_composer.program import Program
from loratree_composer.sharing import tensors
from loratree_composer.untying import check_tied
from loratree_registry.checkpoint import Checkpoint
from loratree_registry.errors import Invalid, listed
from loratree_registry.manifest import BaseManifest


def write_merged_model(
    base: Checkpoint, model_class: type[nn.Module], manifest: BaseManifest, programs: Mapping[str, Program], out: Path
) -> list[str]:
    """Loads the model, merges in its memory and lets transformers write it into `out`, laid out as before.

    It takes the memory of the whole model: the layout on the disk is not the model's, so no tensor can pass alone.
    Returns what differs from the manifest's base, a clause each; nothing is written then. Raises Invalid where a
    program has no tensor to go to, changes one that is never saved, or would take a tie apart, and for values that are
    not finite.
    """
    check_tied(manifest, programs)
    model = load_converted(base.directory, model_class)
    if differences := _differences(manifest_of_module(model), manifest):
        return differences
    if lost := sorted(never_saved(model) & programs.keys()):
        raise Invalid(
            f"the chain changes {listed(lost, limit=3)}, which {manifest.architecture} computes itself and "
            "transformers never saves: put it on a live model with Composer, or flatten it"
        )
    live, first = tensors(model), {p.name for p in manifest.parameters if p.tied_to is None}
    for name in sorted(first & programs.keys()):
        merge_into(live[name], live[name], programs[name].edits, name=name)
    sizes = [shard.header.size for shard in base.shards]
    save_converted(model, out, largest=max(sizes) if len(sizes) > 1 else 2 * max(sizes))
    return []


def _differences(found: BaseManifest, expected: BaseManifest) -> list[str]:
    live, base = found.by_name(), expected.by_name()
    problems = [f"{name} is missing" for name in sorted(base.keys() - live.keys())]
    problems += [f"{name} is unexpected" for name in sorted(live.keys() - base.keys())]
    values = {name: (live[name].dtype, live[name].shape, live[name].sha256) for name in live.keys() & base.keys()}
    return problems + [
        f"{name} has other values"
        for name in sorted(values)
        if values[name] != (base[name].dtype, base[name].shape, base[name].sha256)
    ]
