"""A base's checkpoint written again with deltas merged in, one tensor in memory at a time."""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

from loratree_composer.merge import merged
from loratree_composer.program import Program
from loratree_composer.stored_tensor import bytes_of, tensor_of
from loratree_registry.base_checkpoint import misfits
from loratree_registry.canonical import DIGEST_PREFIX
from loratree_registry.checkpoint import INDEX, Checkpoint, Shard
from loratree_registry.errors import Invalid, listed
from loratree_registry.manifest import BaseManifest, Parameter

# What may stand beside weights and is no weight, no code and no trainer's state: configs, tokenizers, chat templates.
BESIDE: Final = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".spm", ".bpe")
_NOT_BESIDE: Final = ("loratree.json", "adapter_config.json", "trainer_state.json")


def write_merged(base: Checkpoint, manifest: BaseManifest, programs: Mapping[str, Program], out: Path) -> None:
    """Writes what `programs` make of each tensor that they name, and every other tensor as it is, into `out`.

    The shards keep their names, headers and dtypes. Each tensor's digest is checked against the manifest as it passes.
    Raises Invalid where the checkpoint is not the manifest's base or a program has no untied tensor to go to.
    """
    expected = manifest.by_name()
    _check(programs, manifest)
    if problems := misfits(base, manifest):
        raise _not_the_base(base.directory, problems)
    for shard in base.shards:
        with (out / shard.path.name).open("wb") as target:
            _write_shard(shard, expected, programs, target)
    for path in _beside(base.directory):
        shutil.copyfile(path, out / path.name)


def _check(programs: Mapping[str, Program], manifest: BaseManifest) -> None:
    parameters, problems = manifest.by_name(), []
    shared = {p.tied_to for p in manifest.parameters} | {p.name for p in manifest.parameters if p.tied_to is not None}
    for name in programs:
        if name not in parameters:
            problems.append(f"{name} is not in the base")
        elif name in shared:
            problems.append(f"{name} shares its memory with another name")
    if problems:
        raise Invalid(f"the chain cannot be merged into the base: {listed(problems)}")


def _write_shard(
    shard: Shard, expected: Mapping[str, Parameter], programs: Mapping[str, Program], target: BinaryIO
) -> None:
    changed = []
    target.write(shard.head())
    for name in shard.header.tensors:  # in the order of their bytes
        program = programs.get(name)
        digest = _copy(shard, name, target) if program is None else _merge(shard, name, program, target)
        if digest != expected[expected[name].tied_to or name].sha256:
            changed.append(f"{name} has other values")
    if changed:
        raise _not_the_base(shard.path.parent, changed)


def _copy(shard: Shard, name: str, target: BinaryIO) -> str:
    hasher = hashlib.sha256()
    for chunk in shard.chunks(name):
        hasher.update(chunk)
        target.write(chunk)
    return DIGEST_PREFIX + hasher.hexdigest()


def _merge(shard: Shard, name: str, program: Program, target: BinaryIO) -> str:
    raw = shard.raw(name)
    target.write(bytes_of(merged(tensor_of(raw, shard.type(name)), program.edits, name=name)))
    return DIGEST_PREFIX + hashlib.sha256(raw).hexdigest()


def _beside(directory: Path) -> list[Path]:
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
        f"{directory} is not the base that the tree grows on: {listed(problems)}; "
        "give the base's own checkpoint with --base"
    )
