"""The programs of the compositions that were put on a model last, ready to be summed."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from typing import Final

from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows, Rescale, Shift
from loratree_composer.arithmetic.program import Program

KEPT: Final = 1 << 28  # bytes of factors
ASKED: Final = 64  # names of what was asked for last

Programs = Mapping[str, Program]


class RecentPrograms:
    """Ready programs by what names them; at most `kept` bytes of them stay, least recently used out.

    They are what a merge would otherwise make of the adapters each time: float32 factors, scaled and side by side.
    What is asked for once alone is not kept.
    """

    def __init__(self, *, kept: int = KEPT) -> None:
        self._limit = kept
        self._kept: OrderedDict[Hashable, tuple[Programs, int]] = OrderedDict()
        self._asked: deque[Hashable] = deque(maxlen=ASKED)

    def get(self, key: Hashable, make: Callable[[], Programs]) -> Programs:
        """The programs that `key` names: those kept, else what `make` gives."""
        if key not in self._kept and key not in self._asked:
            self._asked.append(key)
            return make()
        found, size = self._kept.pop(key) if key in self._kept else _ready(make())
        self._kept[key] = found, size
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
        return found

    def clear(self) -> None:
        """Frees all of them."""
        self._kept.clear()


def _ready(programs: Programs) -> tuple[Programs, int]:
    """The same programs, ready, and their size in bytes."""
    found = {name: program.ready() for name, program in programs.items()}
    return found, sum(edit_size(edit) for program in found.values() for edit in program.edits)


def edit_size(edit: Edit) -> int:
    """The bytes of an edit's tensors."""
    match edit:
        case Add(delta):
            return delta.a.nbytes + delta.b.nbytes
        case Rescale(delta, magnitude):
            return delta.a.nbytes + delta.b.nbytes + magnitude.nbytes
        case Shift(value) | Replace(value) | ReplaceRows(_, value):
            return value.nbytes
