"""A limit on the memory that a composer keeps only to be faster, and caches that share it."""

from collections import OrderedDict
from collections.abc import Hashable
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

    def held(self, cache: str) -> int:
        """Return the number of bytes that a cache holds."""
        return self._held.get(cache, 0)

    def left(self, cache: str) -> int:
        """Return the number of bytes that a cache may hold, beside all others."""
        return self.limit - sum(self._held.values()) + self.held(cache)

    def add(self, cache: str, size: int) -> None:
        """Count `size` more bytes in a cache, or fewer if it is negative."""
        self._held[cache] = self.held(cache) + size


class Cache(Generic[T]):
    """A cache called `name` of at most `share` of a budget; the least recently used value leaves first.

    Each call takes the same time, however many values are kept.
    """

    def __init__(self, budget: Budget, name: str, *, share: float) -> None:
        self._budget, self._name, self._share = budget, name, share
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def get(self, key: Hashable) -> T | None:
        """Return the value of `key`, which is now the most recently used, or None."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        """Keep a value of `size` bytes, and remove others, or this one, until all fit."""
        self._remove(key)
        self._values[key] = value, size
        self._budget.add(self._name, size)
        while self._values and self._budget.held(self._name) > self._limit:
            self._remove(next(iter(self._values)))

    def entries(self) -> list[tuple[T, int]]:
        """Return every value with its size, the least recently used first."""
        return list(self._values.values())

    def clear(self) -> None:
        """Remove every value."""
        for key in list(self._values):
            self._remove(key)

    @property
    def _limit(self) -> float:
        return min(self._share * self._budget.limit, self._budget.left(self._name))

    def _remove(self, key: Hashable) -> None:
        _, size = self._values.pop(key, (None, 0))
        self._budget.add(self._name, -size)
