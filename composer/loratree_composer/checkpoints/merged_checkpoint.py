"""A base's checkpoint, written with a chain's deltas merged in, with one tensor in memory at a time."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

from torch import nn

from loratree_composer.arithmetic.merge import merge_into
from loratree_composer.arithmetic.program import Program
from loratree_composer.base.converted import load_model, save_converted
from loratree_composer.base.layout import layout_of, never_saved
from loratree_composer.base.manifest import fit_layout, manifest_of_module
from loratree_composer.base.meta_model import meta_model
from loratree_composer.base.sharing import tensors, ties
from loratree_composer.base.stored_tensor import tensor_of
from loratree_composer.base.untied import take_apart
from loratree_composer.checkpoints.pipeline_modules import copy_modules
from loratree_composer.checkpoints.untying import deny_ties, must_untie, untie, widen_index, widened_head
from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.progress import BYTES, Counter, Progress, silent
from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.checkpoint import INDEX, Checkpoint, Shard
from loratree_registry.tensor_files.comparison import misfits

# The files to copy beside the weights: configs, tokenizers and chat templates, but no code and no trainer's state.
BESIDE: Final = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe")
_NOT_BESIDE: Final = ("loratree.json", "adapter_config.json", "trainer_state.json")


def write_merged(
    base: Checkpoint,
    manifest: BaseManifest,
    programs: Mapping[str, Program],
    out: Path,
    *,
    untied: bool = False,
    progress: Progress = silent,
) -> None:
    """Write the base into `out`, with each program merged into the tensor of its name and all other tensors unchanged.

    The shards keep their names, their dtypes and, unless a tie is taken apart, their headers. If the chain changes two
    tied names in different ways, or `untied` says that a level did, the names that config.json can take apart get their
    own tensors after the shared one, and config.json and the index are updated. Memory holds one copy of one tensor at
    a time. Each tensor's digest is checked against the manifest.

    If the checkpoint's layout is not the model's, such as Mixtral's, transformers loads the whole model and writes it
    in the checkpoint's layout.

    Raises Invalid if the checkpoint is not the manifest's base, a program has no tensor, a tie cannot be taken apart,
    or a value is not finite. Only the values of tensors are checked after the first write.
    """
    expected = manifest.by_name()
    if unknown := sorted(name for name in programs if name not in expected):
        raise Invalid(f"the chain cannot be merged into the base: it has no {listed(unknown, limit=5)}")
    manifest = fit_layout(manifest, base)
    if problems := misfits(base, manifest):
        model = meta_model(base.directory, base)
        if not layout_of(model, base.types()).is_converted:
            raise _not_the_base(base.directory, problems)
        is_apart = must_untie(manifest, programs, untied=untied)
        if problems := write_merged_model(base, model, manifest, programs, out, is_apart=is_apart, progress=progress):
            raise _not_the_base(base.directory, problems)
        _copy_beside(base.directory, out, without=INDEX)
        if is_apart:
            deny_ties(out)
        return
    _copy_beside(base.directory, out)
    added = untie(base, manifest, programs, out, untied=untied)
    for shard in base.telling(progress, f"merging into {base.directory}").shards:
        with (out / shard.path.name).open("wb") as target:
            _write_shard(shard, manifest, programs, added, target)
    if added and (out / INDEX).is_file():
        widen_index(out / INDEX, base, added)


def _write_shard(
    shard: Shard,
    manifest: BaseManifest,
    programs: Mapping[str, Program],
    added: Mapping[str, list[str]],
    target: BinaryIO,
) -> None:
    changed, expected, names = [], manifest.by_name(), manifest.locate(shard.header.tensors)
    target.write(widened_head(shard, added))
    for stored in shard.header.tensors:  # in the order of their bytes, so that the file is written front to back
        if stored not in names:
            _copy(shard, stored, target)  # a leftover
            continue
        for name in (names[stored], *added.get(stored, ())):
            program = programs.get(name)
            digest = _copy(shard, stored, target) if program is None else _merge(shard, stored, name, program, target)
            if digest != expected[expected[name].tied_to or name].sha256:
                changed.append(f"{stored} has other values")
    if changed:
        raise _not_the_base(shard.path.parent, changed)


def _copy(shard: Shard, stored: str, target: BinaryIO) -> str:
    hasher = hashlib.sha256()
    for chunk in shard.chunks(stored):
        hasher.update(chunk)
        target.write(chunk)
    return DIGEST_PREFIX + hasher.hexdigest()


def _merge(shard: Shard, stored: str, name: str, program: Program, target: BinaryIO) -> str:
    raw = shard.raw(stored)
    digest = hashlib.sha256(raw).hexdigest()
    tensor = tensor_of(raw, shard.type(stored))
    merge_into(tensor, tensor, program.edits, name=name)  # writes into the memory of `raw`: no second copy exists
    target.write(raw)
    return DIGEST_PREFIX + digest


def _copy_beside(directory: Path, out: Path, *, without: str | None = None) -> None:
    for path in _list_beside(directory):
        if path.name != without:
            shutil.copyfile(path, out / path.name)
    copy_modules(directory, out)


def _list_beside(directory: Path) -> list[Path]:
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_file()
        and path.suffix in BESIDE
        and not path.name.startswith(".")
        and path.name not in _NOT_BESIDE
        and (path.name == INDEX or not path.name.endswith(".index.json"))
    )


def _not_the_base(directory: Path, problems: list[str]) -> Invalid:
    return Invalid(
        f"{directory} is not the base that the tree grows on: {listed(problems, limit=5)}; "
        "give the base's own checkpoint with --base"
    )


def write_merged_model(
    base: Checkpoint,
    described: nn.Module,
    manifest: BaseManifest,
    programs: Mapping[str, Program],
    out: Path,
    *,
    is_apart: bool,
    progress: Progress = silent,
) -> list[str]:
    """Load the model, merge in its memory and let transformers write it into `out` in the layout of the base.

    `described` is the model on the meta device. The whole model must fit in memory: the layout on disk is not the
    model's, so tensors cannot be written one by one.
    Returns a clause for each difference from the manifest's base; if there is any, nothing is written. Raises Invalid
    if a program changes a tensor that is never saved, if a tie cannot be taken apart, or if a value is not finite.
    """
    progress(f"loading {base.directory}", 0, 0, BYTES)
    model = load_model(base, described)
    if differences := _compare_manifests(manifest_of_module(model, progress=progress), manifest):
        return differences
    if lost := sorted(never_saved(model) & programs.keys()):
        raise Invalid(
            f"the chain changes {listed(lost, limit=3)}, which {manifest.architecture} computes itself and "
            "transformers never saves: put the chain on a live model with Composer, or flatten it"
        )
    if is_apart:
        take_apart(model)
    live, first = tensors(model), {name for name, first in ties(model).items() if name == first}
    counter = Counter(progress, "merging", len(first & programs.keys()), "tensors", then="writing the model")
    for name in sorted(first & programs.keys()):
        counter.add()
        merge_into(live[name], live[name], programs[name].edits, name=name)
    sizes = [shard.header.size for shard in base.shards]
    save_converted(model, out, largest=max(sizes) if len(sizes) > 1 else 2 * max(sizes))
    return []


def _compare_manifests(actual: BaseManifest, expected: BaseManifest) -> list[str]:
    live, base = actual.by_name(), expected.by_name()
    problems = [f"{name} is missing" for name in sorted(base.keys() - live.keys())]
    problems += [f"{name} is unexpected" for name in sorted(live.keys() - base.keys())]
    values = {name: (live[name].dtype, live[name].shape, live[name].sha256) for name in live.keys() & base.keys()}
    return problems + [
        f"{name} has other values"
        for name in sorted(values)
        if values[name] != (base[name].dtype, base[name].shape, base[name].sha256)
    ]
