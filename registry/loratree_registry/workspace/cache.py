"""The files that this machine fetched from a registry, by digest: what they take, and how to free it."""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.core.progress import Counter, Progress, silent
from loratree_registry.core.times import now, rfc3339

CACHE: Final = "cache"
BEING_WRITTEN: Final = timedelta(hours=1)  # since the last byte that a killed download wrote


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """A file of the cache: its digest, its size in bytes, and when it was last used (RFC 3339, UTC)."""

    sha256: str
    size: int
    used_at: str


def open_cache(home: Path) -> LocalBlobStore:
    """Return the cache in HOME."""
    return LocalBlobStore(home / CACHE, setting="LORATREE_HOME")


def note_use(path: Path) -> None:
    """Record that a cached file is used now."""
    with suppress(OSError):  # it stays usable if its time cannot be set, and is only pruned earlier
        os.utime(path)


def list_cached(home: Path) -> list[CachedFile]:
    """Return every file of the cache, the one that was used last first. Raises Unavailable."""
    stored = sorted(open_cache(home).list_blobs(), key=lambda blob: (blob.modified, blob.digest), reverse=True)
    return [CachedFile(sha256=blob.digest, size=blob.size, used_at=rfc3339(blob.modified)) for blob in stored]


def prune(
    home: Path,
    *,
    keep: int | None = None,
    unused: timedelta | None = None,
    spare: Collection[str] = (),
    dry_run: bool = False,
    progress: Progress = silent,
) -> Iterator[CachedFile]:
    """Remove files, and yield each: those not used for `unused`, then the longest unused beyond `keep` bytes.

    The digests in `spare` stay, and count. It is safe while other processes compose: an open file stays readable, and a
    missing one is fetched again.
    Raises Unavailable.
    """
    cache = open_cache(home)
    if not dry_run:
        cache.sweep(before=now() - BEING_WRITTEN)
    before = None if unused is None else rfc3339(now() - unused)
    chosen = _choose(list_cached(home), keep, before, spare)
    counter = Counter(progress, "removing fetched files", len(chosen), "files")
    for file in chosen:
        if not dry_run:
            cache.delete(file.sha256)
        yield file
        counter.add()


def _choose(files: list[CachedFile], keep: int | None, before: str | None, spare: Collection[str]) -> list[CachedFile]:
    """Return the files that go, of those that were used last first: see prune."""
    chosen, held = [], 0
    for file in files:
        held += file.size
        is_old = (before is not None and file.used_at < before) or (keep is not None and held > keep)
        if is_old and file.sha256 not in spare:
            held -= file.size
            chosen.append(file)
    return chosen
