"""A cache of the programs that were put on a model last, ready to be summed."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from typing import Final

from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows, Rescale, Shift
from loratree_composer.arithmetic.program import Program

KEPT: Final = 1 << 28  # bytes of factors
ASKED: Final = 64  # keys of the latest requests

Programs = Mapping[str, Program]


class RecentPrograms:
    """Ready programs by key; if they exceed `kept` bytes, the least recently used are dropped.

    Without the cache, each merge would convert the factors to float32, scale them and concatenate them again. The
    first request for a key is not cached, only the second, so that a single use takes no memory.
    """

    def __init__(self, *, kept: int = KEPT) -> None:
        self._limit = kept
        self._kept: OrderedDict[Hashable, tuple[Programs, int]] = OrderedDict()
        self._asked: deque[Hashable] = deque(maxlen=ASKED)

    def get(self, key: Hashable, make: Callable[[], Programs]) -> Programs:
        """Return the programs of `key`, from the cache or else from `make`."""
        if key not in self._kept and key not in self._asked:
            self._asked.append(key)
            return make()
        programs, size = self._kept.pop(key) if key in self._kept else _cache_edits(make())
        self._kept[key] = programs, size
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
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
