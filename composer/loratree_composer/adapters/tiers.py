"""Where versions lie between uses, disk, RAM and device: the limit of each, and what happens in it."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from loratree_registry.errors import Invalid


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """Limits in bytes of what is kept for the next use. None leaves a tier to the default.

    `disk` bounds the fetched files under LORATREE_HOME, which all processes share (default: no bound). `ram` bounds the
    adapters in memory (default: half of the composer's budget). `device` bounds the versions that batches hold beside
    the model, which on a CPU is RAM too (default: a quarter of the budget, and what a batch takes beyond it); a batch
    that takes more than a given limit is refused. Raises Invalid unless each is a whole number from 0.
    """

    disk: int | None = None
    ram: int | None = None
    device: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            limit = getattr(self, field.name)
            if limit is not None and (type(limit) is not int or limit < 0):
                raise Invalid(f"the limit of {field.name} is a whole number of bytes from 0, got {limit!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One tier now: its `limit` and what it `held`, in bytes, the number of `versions`, and what happened so far.

    A hit is a request for a version that lay there, or that another thread was loading. A miss was loaded from the next
    tier: `loaded` bytes in all, in `seconds`. An eviction made room for another version. `limit` is None without a
    bound; what the disk holds is not looked up, so `held` and `versions` are None there.
    """

    limit: int | None
    held: int | None
    versions: int | None
    hits: int
    misses: int
    evictions: int
    loaded: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """The three tiers of a Composer now."""

    disk: Tier
    ram: Tier
    device: Tier


class Counts:
    """What happens in one tier, counted from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits = self._misses = self._evictions = self._loaded = 0
        self._seconds = 0.0

    def hit(self, count: int = 1) -> None:
        """Count versions that were there."""
        with self._lock:
            self._hits += count

    def evict(self, count: int = 1) -> None:
        """Count versions that made room."""
        with self._lock:
            self._evictions += count

    def load(self, size: int, seconds: float) -> None:
        """Count a version of `size` bytes that was not there, and what loading it took."""
        with self._lock:
            self._misses += 1
            self._loaded += size
            self._seconds += seconds

    def read(self, *, limit: int | None, held: int | None, versions: int | None) -> Tier:
        """Return what was counted, with what the tier holds now."""
        with self._lock:
            return Tier(
                limit=limit,
                held=held,
                versions=versions,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
                loaded=self._loaded,
                seconds=self._seconds,
            )


class Stopwatch:
    """The seconds of a block."""

    seconds = 0.0


@contextmanager
def timed() -> Iterator[Stopwatch]:
    """Measure a block."""
    watch, start = Stopwatch(), time.perf_counter()
    yield watch
    watch.seconds = time.perf_counter() - start
