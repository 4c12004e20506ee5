"""Bringing versions to this machine: the cache of files by digest, and `loratree pull`."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.read_back import holds
from loratree_registry.canonical import canonical_json, digest_stream
from loratree_registry.composition import FileDigest
from loratree_registry.errors import Conflict, Corrupt, Invalid, listed
from loratree_registry.paths import base_of
from loratree_registry.peft_fields import full_config
from loratree_registry.peft_files import CONFIG
from loratree_registry.protocol import Registry
from loratree_registry.resumed import open_resumed
from loratree_registry.schemas import Version
from loratree_registry.staging import staged

CACHE: Final = "cache"


def fetch(registry: Registry, home: Path, ref: str, file: FileDigest) -> Path:
    """One file of the version or base that `ref` names, on this machine's disk, to be read and never written.

    It is the blob itself where this machine stores it, else HOME/cache/sha256/ab/<hex>. Its bytes are hashed at every
    use: a damaged copy is fetched again. Raises Corrupt where the registry itself holds other bytes than the digest
    says, NotFound, and Unavailable where the disk or the registry fails.
    """
    stored = registry.local_file(ref, file.name)
    if stored is not None:
        with stored.open("rb") as stream:
            if digest_stream(stream) != (file.sha256, file.size):
                raise _damaged(ref, file)
        return stored
    cache = LocalBlobStore(home / CACHE, setting="LORATREE_HOME")
    if not holds(cache, file.sha256, file.size):
        with open_resumed(registry, ref, file.name) as stream:
            try:
                cache.put(file.sha256, file.size, stream)
            except Invalid as error:
                raise _damaged(ref, file) from error
    return cache.path(file.sha256)


def pull(registry: Registry, home: Path, ref: str, out: Path, *, strict: bool = False) -> Version:
    """Writes the version that `ref` names into `out` as an ordinary PEFT directory, whole or not at all.

    The config's base_model_name_or_path says what it was trained on: the pinned version as PATH@sha256:…, which publish
    reads again, or the base by its source or name. An `out` that holds the same adapter already is left alone; one that
    holds anything else is refused with Conflict. So is, with `strict`, one whose chain holds a withdrawn version.
    Raises Quarantined, also where this machine holds the files already.
    """
    version = registry.version(ref)
    name = f"{version.path}@{version.number}"
    _check_record(version)
    registry.resolve(name, strict=strict)
    config = full_config(version.config, base_model=_trained_on(registry, version))
    files = {file.name: fetch(registry, home, name, file) for file in version.files}
    if is_filled(out):
        _check_same(out, version, config)
    else:
        _write(out, files, config)
    return version


def forget(home: Path, files: list[FileDigest]) -> None:
    """Takes files out of the cache. Raises Unavailable."""
    cache = LocalBlobStore(home / CACHE, setting="LORATREE_HOME")
    for file in files:
        cache.delete(file.sha256)


def _check_record(version: Version) -> None:
    """Checks that the config and the pin are those that the digests name. Raises Corrupt."""
    if problems := version.problems():
        raise Corrupt(f"the registry's record is damaged: {listed(problems)}; restore it from a backup")


def _damaged(ref: str, file: FileDigest) -> Corrupt:
    return Corrupt(
        f"the blob {file.sha256} ({file.name} of {ref}) is damaged where the registry stores it: send the "
        "same file again or restore the blob"
    )


def is_filled(out: Path) -> bool:
    """Tells whether a folder to write into holds something already. Raises Invalid where it is no folder."""
    try:
        return any(out.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Invalid(f"{out} is not a folder to write into ({error.strerror}): give a new or empty one") from error


def _check_same(out: Path, version: Version, config: dict[str, Any]) -> None:
    try:
        held = json.loads((out / CONFIG).read_text(encoding="utf-8"))
        same = canonical_json(held) == canonical_json(config)
        for file in version.files:
            with (out / file.name).open("rb") as stream:
                same = same and digest_stream(stream) == (file.sha256, file.size)
    except (OSError, ValueError, RecursionError):
        same = False
    if not same:
        raise Conflict(f"{out} holds something else than {version.path}@{version.number}: give a new or empty folder")


def _write(out: Path, files: dict[str, Path], config: dict[str, Any]) -> None:
    with staged(out) as folder:
        for name, source in files.items():
            shutil.copyfile(source, folder / name)
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _trained_on(registry: Registry, version: Version) -> str:
    """What base_model_name_or_path says: the pinned version as PATH@sha256:…, or the base by its source or name."""
    if version.pin.path is not None:
        return f"{version.pin.path}@{version.pin.digest}"
    base = registry.base(base_of(version.path))
    return base.source or base.name
