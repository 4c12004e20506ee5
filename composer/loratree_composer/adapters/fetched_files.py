"""The disk tier: the files of versions that this machine fetched, which all processes share."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from loratree_composer.adapters.tiers import Counts, Tier, timed
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.progress import Tick
from loratree_registry.core.registry import Registry
from loratree_registry.workspace.cache import prune
from loratree_registry.workspace.fetch import fetch

_SLACK: Final = 0.05  # of the limit: what may be fetched between two looks at what the disk holds


class FetchedFiles:
    """Fetches files into LORATREE_HOME, and removes the longest unused ones beyond `limit` bytes.

    A registry whose blobs lie in a folder of this machine fetches nothing: its own files are read, and not counted
    against the limit.
    """

    def __init__(self, registry: Registry, home: Path, *, limit: int | None) -> None:
        self._registry, self._home, self._limit = registry, home, limit
        self._lock, self._counts = threading.Lock(), Counts()
        self._used = Counter[str]()  # readers of each file, by digest
        self._since = 0 if limit is None else limit  # bytes fetched since the last look: look after the first

    def fetch(self, ref: str, file: FileDigest, on_read: Tick) -> Path:
        """Return the path of a verified file, as the workspace's `fetch` does."""
        sizes: list[int] = []
        with timed() as watch:
            path = fetch(self._registry, self._home, ref, file, on_read=on_read, on_download=sizes.append)
        if not sizes:
            self._counts.hit()
            return path
        self._counts.load(file.size, watch.seconds)
        if self._limit is not None:
            self._bound(self._limit, file.size)
        return path

    @contextmanager
    def in_use(self, file: FileDigest) -> Iterator[None]:
        """Keep a file, which may not be there yet, while the block reads it."""
        with self._lock:
            self._used[file.sha256] += 1
        try:
            yield
        finally:
            with self._lock:
                self._used[file.sha256] -= 1
                if not self._used[file.sha256]:
                    del self._used[file.sha256]

    def read(self) -> Tier:
        """Return what happened; what the disk holds now is not looked up."""
        return self._counts.read(limit=self._limit, held=None, versions=None)

    def _bound(self, limit: int, size: int) -> None:
        with self._lock:
            self._since += size
            if self._since > _SLACK * limit:
                self._counts.evict(sum(1 for _ in prune(self._home, keep=limit, spare=set(self._used))))
                self._since = 0
