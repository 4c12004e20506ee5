"""A limit on the memory that a composer keeps only to be faster, and caches that share it."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from loratree_registry.errors import Invalid

DEFAULT: Final = 4 << 30  # bytes

T = TypeVar("T")


class Budget:
    """A number of bytes that several caches may hold together. Raises Invalid unless it is a whole number from 0."""

    def __init__(self, limit: int = DEFAULT) -> None:
        if type(limit) is not int or limit < 0:
            raise Invalid(f"a budget is a whole number of bytes from 0, got {limit!r}: 0 keeps nothing")
        self.limit: Final = limit
        self._held: dict[str, int] = {}
        self._give_way: Callable[[], object] = lambda: None

    def let_give_way(self, clear: Callable[[], object]) -> None:
        """Name the cache that is cleared first if another one needs its memory."""
        self._give_way = clear

    def make_room(self, size: int) -> None:
        """Clear the cache that gives way, unless `size` more bytes fit beside it."""
        if size > self.free:
            self._give_way()

    @property
    def free(self) -> int:
        """The number of bytes that no cache holds."""
        return self.limit - sum(self._held.values())

    def held(self, cache: str) -> int:
        """Return the number of bytes that a cache holds."""
        return self._held.get(cache, 0)

    def left(self, cache: str) -> int:
        """Return the number of bytes that a cache may hold, beside all others."""
        return self.free + self.held(cache)

    def add(self, cache: str, size: int) -> None:
        """Count `size` more bytes in a cache, or fewer if it is negative."""
        self._held[cache] = self.held(cache) + size


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a Composer holds beside the model, in bytes.

    `adapters`, `programs`, `stacks` and `prefix_sums` are kept only to be faster, and share `budget`. `pristine` is the
    untouched weights of a merge, on the host or the device, and the copies of names that a chain has untied. `stacked`
    is the factors and the composed copies on the model now, unless they are kept in `stacks`. `batches` is the versions
    that batches took, and that are kept for the next batch.
    """

    budget: int
    adapters: int
    programs: int
    stacks: int
    prefix_sums: int
    pristine: int
    stacked: int
    batches: int = 0

    @property
    def total(self) -> int:
        """The sum of everything that is held."""
        return (
            self.adapters + self.programs + self.stacks + self.prefix_sums + self.pristine + self.stacked + self.batches
        )


class Cache(Generic[T]):
    """A cache called `name` of at most `share` of a budget; the least recently used value leaves first.

    Each call takes the same time, however many values are kept.
    """

    def __init__(self, budget: Budget, name: str, *, share: float) -> None:
        self._budget, self._name, self._share = budget, name, share
        self.evictions = 0  # values that made room for others
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    @property
    def nbytes(self) -> int:
        """The size of every value in bytes."""
        return self._budget.held(self._name)

    def get(self, key: Hashable) -> T | None:
        """Return the value of `key`, which is now the most recently used, or None."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        """Keep a value of `size` bytes, and remove others, or this one, until all fit."""
        self._remove(key)
        self._budget.make_room(size)
        self._values[key] = value, size
        self._budget.add(self._name, size)
        while self._values and self._budget.held(self._name) > self._limit:
            self._remove(next(iter(self._values)))
            self.evictions += 1

    def entries(self) -> list[tuple[T, int]]:
        """Return every value with its size, the least recently used first."""
        return list(self._values.values())

    def clear(self) -> None:
        """Remove every value."""
        for key in list(self._values):
            self._remove(key)

    @property
    def limit(self) -> int:
        """The number of bytes that it may hold if no other cache needs them."""
        return int(self._share * self._budget.limit)

    @property
    def _limit(self) -> float:
        return min(self._share * self._budget.limit, self._budget.left(self._name))

    def _remove(self, key: Hashable) -> None:
        _, size = self._values.pop(key, (None, 0))
        self._budget.add(self._name, -size)
