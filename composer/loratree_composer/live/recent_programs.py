"""A cache of the programs that were put on a model last, ready to be summed."""

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Final

from loratree_composer.adapters.budget import Budget, Cache
from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows, Rescale, Shift
from loratree_composer.arithmetic.program import Program

ASKED: Final = 64  # keys of the latest requests

Programs = Mapping[str, Program]


class RecentPrograms:
    """Ready programs by key, in at most an eighth of a budget; the least recently used are dropped first.

    Without the cache, each merge would convert the factors to float32, scale them and concatenate them again. The
    first request for a key is not cached, only the second, so that a single use takes no memory.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self._kept: Cache[Programs] = Cache(budget or Budget(), "programs", share=0.125)
        self._asked: deque[Hashable] = deque(maxlen=ASKED)

    def get(self, key: Hashable, make: Callable[[], Programs]) -> Programs:
        """Return the programs of `key`, from the cache or else from `make`."""
        if (kept := self._kept.get(key)) is not None:
            return kept
        if key not in self._asked:
            self._asked.append(key)
            return make()
        programs, size = _cache_edits(make())
        self._kept.put(key, programs, size)
        return programs

    def clear(self) -> None:
        """Free every program."""
        self._kept.clear()


def _cache_edits(programs: Programs) -> tuple[Programs, int]:
    """Return the programs with their edits cached, and the size of these edits in bytes."""
    cached = {name: program.with_cached_edits() for name, program in programs.items()}
    return cached, sum(edit_size(edit) for program in cached.values() for edit in program.edits)


def edit_size(edit: Edit) -> int:
    """Return the size of an edit's tensors in bytes."""
    match edit:
        case Add(delta):
            return delta.a.nbytes + delta.b.nbytes
        case Rescale(delta, magnitude):
            return delta.a.nbytes + delta.b.nbytes + magnitude.nbytes
        case Shift(value) | Replace(value) | ReplaceRows(_, value):
            return value.nbytes
