"""Download of versions to this machine: the cache of files by digest, and `loratree pull`."""

import io
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from loratree_registry.blobs.counted import counted
from loratree_registry.blobs.verified import has_intact
from loratree_registry.core.digests import FileDigest, canonical_json, holds
from loratree_registry.core.documents import check_documents
from loratree_registry.core.paths import base_of
from loratree_registry.core.progress import Counter, Progress, Tick, silent, uncounted
from loratree_registry.core.records import ADAPTER_CONFIG, Version
from loratree_registry.core.registry import Registry
from loratree_registry.core.times import now
from loratree_registry.disk.plain_files import open_named, open_plain, plain_path, read_plain
from loratree_registry.disk.whole_folder import whole_folder
from loratree_registry.errors import Conflict, Corrupt, Invalid, Unavailable, listed
from loratree_registry.peft_format.config import MAX_CONFIG, full_config
from loratree_registry.workspace.cache import BEING_WRITTEN, note_use, open_cache

_OTHER: Final = "give a new or empty folder"


def fetch(
    registry: Registry,
    home: Path,
    ref: str,
    file: FileDigest,
    *,
    on_read: Tick = uncounted,
    on_download: Tick = uncounted,
) -> Path:
    """Return the path on this machine of one file of the version or base that `ref` names; read it, never write it.

    The path is the stored blob if this machine has it, else HOME/cache/sha256/ab/<hex>. The bytes are hashed at every
    call, and a damaged cached copy is fetched again; `on_download` gets the size of what was fetched. Raises
    Corrupt if the registry's own bytes do not match the digest, NotFound, and Unavailable if the disk or the registry
    fails.
    """
    stored = registry.local_file(ref, file.name)
    if stored is not None:
        with open_fetched(stored) as stream:
            if not holds(stream, file, on_read):
                raise _damage_error(ref, file)
        return stored
    cache = open_cache(home)
    if not has_intact(cache, file.sha256, file.size, partial(_count, on_read)):
        with open_resumed(registry, ref, file.name) as stream:
            try:
                cache.sweep(before=now() - BEING_WRITTEN)
                cache.put(file.sha256, file.size, counted(stream, on_read))
            except Invalid as error:
                raise _damage_error(ref, file) from error
        on_download(file.size)
    note_use(path := cache.path(file.sha256))
    return path


def fetch_all(
    registry: Registry, home: Path, wanted: Sequence[tuple[str, FileDigest]], *, progress: Progress = silent
) -> list[Path]:
    """Fetch files, each with the ref that it belongs to, as `fetch` does; return their paths in the same order."""
    counter = Counter(progress, "fetching", sum(file.size for _, file in wanted))
    paths = []
    for ref, file in wanted:
        counter.begin(f"fetching {file.name} of {ref}")
        paths.append(fetch(registry, home, ref, file, on_read=counter.add))
    return paths


def open_fetched(path: Path) -> BinaryIO:
    """Open a fetched file. Raises Unavailable if it was removed meanwhile, and if a read fails."""
    try:
        return open_named(path, Unavailable)
    except FileNotFoundError as error:
        raise Unavailable(
            f"{path} was removed by a collection while it was in use: run the same command again"
        ) from error


def copy_fetched(path: Path, target: Path, on_read: Tick = uncounted) -> None:
    """Copy a fetched file, as open_fetched opens it."""
    with open_fetched(path) as stream, target.open("wb") as copy:
        shutil.copyfileobj(counted(stream, on_read), copy, _CHUNK)


def writing_counter(progress: Progress, out: Path, files: Sequence[FileDigest]) -> Counter:
    """Return a counter of the bytes that are written to `out`."""
    return Counter(progress, f"writing {out}", sum(file.size for file in files), then="waiting for the disk")


def pull(
    registry: Registry, home: Path, ref: str, out: Path, *, strict: bool = False, progress: Progress = silent
) -> Version:
    """Write the version that `ref` names into `out` as an ordinary PEFT directory, all of it or nothing.

    The config's base_model_name_or_path names the pinned version as PATH@sha256:…, which publish reads again, or the
    base by its source or name. An `out` that already holds the same adapter stays as it is.
    Raises Conflict if `out` holds anything else, or if `strict` and the chain holds a withdrawn version; Quarantined,
    even if this machine already has the files.
    """
    version = registry.version(ref)
    name = f"{version.path}@{version.number}"
    _check_record(version)
    registry.resolve(name, strict=strict)
    config = full_config(version.config, base_model=_base_model_of(registry, version))
    paths = {plain_path(out, file.name, source=f"the registry's record of {name}"): file for file in version.files}
    if out / ADAPTER_CONFIG in paths:
        raise Corrupt(f"the registry lists {ADAPTER_CONFIG} among the files of {name}: restore it from a backup")
    documents = _read_documents(registry, name)
    fetched = fetch_all(registry, home, [(name, file) for file in paths.values()], progress=progress)
    files = {path.name: source for path, source in zip(paths, fetched, strict=True)}
    if is_filled(out):
        _check_same(out, version, config)
    else:
        _write(out, files, config, documents, writing_counter(progress, out, version.files))
    return version


def forget(home: Path, files: list[FileDigest]) -> None:
    """Delete files from the cache. Raises Unavailable."""
    cache = open_cache(home)
    for file in files:
        cache.delete(file.sha256)


def _check_record(version: Version) -> None:
    """Check that the version's digests match its config and its pin. Raises Corrupt."""
    if problems := version.problems():
        raise Corrupt(f"the registry's record is damaged: {listed(problems)}; restore it from a backup")


def _count(on_read: Tick, stream: BinaryIO) -> None:
    """Read `stream` to its end and count the bytes."""
    while chunk := stream.read(_CHUNK):
        on_read(len(chunk))


def _damage_error(ref: str, file: FileDigest) -> Corrupt:
    return Corrupt(
        f"the blob {file.sha256} ({file.name} of {ref}) is damaged where the registry stores it: send the "
        "same file again or restore the blob"
    )


def is_filled(out: Path) -> bool:
    """Return whether the output folder exists and is not empty. Raises Invalid if `out` is not a folder."""
    try:
        return any(out.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Invalid(f"{out} is not a folder to write into ({error.strerror}): give a new or empty one") from error


def _check_same(out: Path, version: Version, config: dict[str, Any]) -> None:
    try:
        existing = json.loads(read_plain(out / ADAPTER_CONFIG, limit=4 * MAX_CONFIG, remedy=_OTHER))
        same = canonical_json(existing) == canonical_json(config)
        for file in version.files:
            with open_plain(plain_path(out, file.name, source="the registry"), remedy=_OTHER) as stream:
                same = same and holds(stream, file)
    except (OSError, ValueError, RecursionError, Invalid):
        same = False
    if not same:
        raise Conflict(f"{out} holds something else than {version.path}@{version.number}: {_OTHER}")


def _write(
    out: Path, files: dict[str, Path], config: dict[str, Any], documents: dict[str, str], counter: Counter
) -> None:
    with whole_folder(out) as folder:
        for name, source in files.items():
            copy_fetched(source, folder / name, counter.add)
        for name, text in documents.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
        (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _read_documents(registry: Registry, ref: str) -> dict[str, str]:
    """Return a version's documents by name. Raises Corrupt if one could not have been published."""
    documents = {document.name: document.text for document in registry.documents(ref)}
    try:
        check_documents(documents)
    except Invalid as error:
        raise Corrupt(f"the registry's documents of {ref} are damaged ({error}): restore them from a backup") from error
    return documents


def _base_model_of(registry: Registry, version: Version) -> str:
    """Return base_model_name_or_path: the pinned version or the base as PATH@sha256:…, or the base's source."""
    if version.pin.path is not None:
        return f"{version.pin.path}@{version.pin.digest}"
    base = registry.base(base_of(version.path))
    return base.source or f"{base.name}@{base.digest}"


_BREAKS: Final = 5  # in one download
_PAUSE_S: Final = 0.2
_CHUNK = 1024 * 1024


@contextmanager
def open_resumed(registry: Registry, ref: str, name: str) -> Iterator[BinaryIO]:
    """Open a file as Registry.open_file does; if the download breaks, resume it where it stopped, up to 5 times."""
    with io.BufferedReader(_Resumed(registry, ref, name), _CHUNK) as stream:
        yield stream


class _Resumed(io.RawIOBase):
    def __init__(self, registry: Registry, ref: str, name: str) -> None:
        self._open = partial(registry.open_file, ref, name)
        self._at = self._breaks = 0
        self._opened = ExitStack()
        self._stream: BinaryIO | None = self._opened.enter_context(self._open())

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            try:
                if self._stream is None:
                    self._stream = self._opened.enter_context(self._open(start=self._at))
                # read1 reads the connection once, so a failed read has consumed nothing.
                chunk = cast("io.BufferedReader", self._stream).read1(len(buffer))
            except Unavailable:
                self._stream = None
                self._opened.close()
                self._breaks += 1
                if self._breaks > _BREAKS:
                    raise
                time.sleep(_PAUSE_S * self._breaks)
            else:
                buffer[: len(chunk)] = chunk
                self._at += len(chunk)
                return len(chunk)

    def close(self) -> None:
        self._opened.close()
        super().close()
