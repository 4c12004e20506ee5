"""Upload and download of a base's weights: `loratree base push` and `base pull`."""

import os
from dataclasses import dataclass
from pathlib import Path

from loratree_registry.blobs.counted import counted
from loratree_registry.core.digests import FileDigest, digest_stream, holds
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.progress import Counter, Progress, Tick, silent
from loratree_registry.core.records import ADAPTER_CONFIG as ADAPTER_CONFIG
from loratree_registry.core.records import Base
from loratree_registry.core.registry import Registry
from loratree_registry.disk.plain_files import check_model_folder, open_plain
from loratree_registry.disk.whole_folder import whole_folder
from loratree_registry.errors import Conflict, Corrupt, Invalid, NotFound, listed
from loratree_registry.tensor_files.checkpoint import INDEX, RESAVE, WEIGHTS, open_checkpoint
from loratree_registry.tensor_files.checkpoint_files import SHARD, check_listing, check_names, is_beside
from loratree_registry.tensor_files.comparison import differences, holds_base, misfits
from loratree_registry.workspace.base_locations import remember_base
from loratree_registry.workspace.cache import CACHE
from loratree_registry.workspace.fetch import copy_fetched, fetch_all, forget, is_filled, writing_counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """The result of a push: the base, its files, the files that were sent, and the names that were left out."""

    base: Base
    files: list[FileDigest]
    sent: list[str]
    not_stored: list[str]


def push_base(registry: Registry, name: str, directory: Path, *, progress: Progress = silent) -> Pushed:
    """Store the checkpoint in `directory` as the weights of the base `name`, all of it or nothing.

    A file that is stored intact is not sent again.
    Raises Invalid if the folder does not hold the base, Conflict if other files are stored.
    """
    check_model_folder(directory)
    names, not_stored = _choose_files(directory)
    sizes = {file_name: _size_of(directory / file_name) for file_name in names}
    check_listing([FileDigest(file_name, size, "") for file_name, size in sizes.items()])
    _check(directory, registry.base_manifest(name), progress)
    counter = Counter(progress, f"hashing {directory}", sum(sizes.values()))
    wanted = [_hash_file(directory / file_name, counter.add) for file_name in names]
    check_names(wanted)
    stored = registry.base_files(name) == wanted
    unsent = registry.damaged_files(name) if stored else registry.missing_files(name, wanted)
    _send(registry, directory, unsent, progress)
    try:
        base = registry.store_base(name, wanted)
    except Corrupt:  # sending every file again replaces the stored bytes that are damaged
        unsent = wanted
        _send(registry, directory, unsent, progress)
        base = registry.store_base(name, wanted)
    return Pushed(base=base, files=wanted, sent=[file.name for file in unsent], not_stored=not_stored)


def pull_base(registry: Registry, home: Path, name: str, out: Path, *, progress: Progress = silent) -> Base:
    """Write the stored weights of the base `name` into `out`, all or nothing, and record `out` as the base's folder.

    Files fetched before a kill are in the cache and are not fetched again. An `out` that holds the same files stays as
    it is. Raises NotFound if the weights are not stored, Conflict if `out` holds something else, Corrupt.
    """
    base, files, manifest = registry.base(name), registry.base_files(name), registry.base_manifest(name)
    if not files:
        raise NotFound(
            f"the weights of the base {name} are not stored: store them with `loratree base push {name} DIR`"
        )
    check_names(files)  # the names come from a server and become file names here
    if is_filled(out):
        _check_same(out, name, files, progress)
    else:
        _write(registry, home, name, files, out, manifest, progress)
    remember_base(home, base.digest, out)
    return base


def _check(directory: Path, manifest: BaseManifest, progress: Progress) -> None:
    """Check that the folder holds the base, before any file is sent. Raises Invalid."""
    checkpoint = open_checkpoint(directory)
    if (directory / ADAPTER_CONFIG).exists():
        raise Invalid(f"{directory} holds an adapter beside the model ({ADAPTER_CONFIG}): give the base's own folder")
    told = checkpoint.telling(progress, f"comparing {directory}")
    problems = misfits(checkpoint, manifest) or list(differences(told, manifest))
    if problems:
        raise Invalid(
            f"{directory} does not hold the base: {listed(problems, limit=5)}; give the folder that was added"
        )


def _choose_files(directory: Path) -> tuple[list[str], list[str]]:
    """Return the names of the files to store, and the names of the other files and the folders."""
    entries = sorted(path.name for path in directory.iterdir() if path.is_file())
    shards = {shard.path.name for shard in open_checkpoint(directory).shards}
    if shards == {WEIGHTS}:
        entries = [name for name in entries if name != INDEX]
    chosen = [name for name in entries if name in shards or (not name.endswith(SHARD) and is_beside(name))]
    folders = sorted(f"{path.name}/" for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    return chosen, [name for name in entries if name not in chosen] + folders


def _size_of(path: Path) -> int:
    with open_plain(path, remedy=RESAVE) as stream:
        return os.fstat(stream.fileno()).st_size


def _hash_file(path: Path, on_read: Tick) -> FileDigest:
    with open_plain(path, remedy=RESAVE) as stream:
        digest, size = digest_stream(stream, on_read)
    return FileDigest(path.name, size, digest)


def _is_same(path: Path, file: FileDigest, on_read: Tick) -> bool:
    with open_plain(path, remedy=RESAVE) as stream:
        return holds(stream, file, on_read)


def _send(registry: Registry, directory: Path, files: list[FileDigest], progress: Progress) -> None:
    counter = Counter(progress, "sending", sum(file.size for file in files), then="the registry checks what it got")
    for file in files:
        counter.begin(f"sending {file.name}")
        with open_plain(directory / file.name, remedy=RESAVE) as stream:
            registry.upload(counted(stream, counter.add), sha256=file.sha256, size=file.size)


def _check_same(out: Path, name: str, files: list[FileDigest], progress: Progress) -> None:
    names = {path.name for path in out.iterdir()}
    counter = Counter(progress, f"comparing {out}", sum(file.size for file in files))
    if names != {file.name for file in files} or any(
        not _is_same(out / file.name, file, counter.add) for file in files
    ):
        raise Conflict(f"{out} holds something else than the base {name}: give a new or empty folder")


def _write(
    registry: Registry,
    home: Path,
    name: str,
    files: list[FileDigest],
    out: Path,
    manifest: BaseManifest,
    progress: Progress,
) -> None:
    paths = fetch_all(registry, home, [(name, file) for file in files], progress=progress)
    counter = writing_counter(progress, out, files)
    with whole_folder(out) as folder:
        for file, path in zip(files, paths, strict=True):
            _place(path, folder / file.name, counter.add, cached=path.is_relative_to(home / CACHE))
        if not holds_base(folder, manifest, progress, what="comparing what was written"):
            raise Corrupt(
                f"the files that the registry stores for the base {name} do not hold its weights: push the base again"
            )
    forget(home, files)  # `out` holds these files now


def _place(fetched: Path, path: Path, on_read: Tick, *, cached: bool) -> None:
    """Link a cached file to `path`, since a base is too large to store twice; copy a file of the registry's store."""
    if not (cached and _try_link(fetched, path)):
        copy_fetched(fetched, path, on_read)
    path.chmod(path.parent.stat().st_mode & 0o666)  # a cached file is readable by its owner only


def _try_link(fetched: Path, path: Path) -> bool:
    try:
        path.hardlink_to(fetched)
    except OSError:  # another file system
        return False
    return True
