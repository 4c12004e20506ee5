"""Caches of what was put on a model last: programs ready to be merged, and layers ready to be stacked."""

from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Final

from torch import nn

from loratree_composer.adapters.budget import Budget, Cache
from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows, Rescale, Shift
from loratree_composer.arithmetic.program import Program, ready
from loratree_composer.live.stack import Stack, fits
from loratree_composer.live.stacked_layers import StackedLayer

ASKED: Final = 64  # keys of the latest requests

Programs = Mapping[str, Program]


class RecentPrograms:
    """Ready programs by key, in at most a quarter of a budget; the least recently used are dropped first.

    Without the cache, each merge would convert the factors to float32, scale them and concatenate them again. The
    first request for a key is not cached, only the second, so that a single use takes no memory.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self._kept: Cache[Programs] = Cache(budget or Budget(), "programs", share=0.25)
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


class RecentStacks:
    """The layers of the last stacks by key, in at most a quarter of a budget, for the next stack of the same chain.

    Without the cache, each `use` would scale, concatenate and copy the factors again. Kept from the second time on.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self._kept: Cache[dict[str, StackedLayer]] = Cache(budget or Budget(), "stacks", share=0.25)
        self._asked: deque[Hashable] = deque(maxlen=ASKED)

    def make(self, key: Hashable, module: nn.Module, programs: Callable[[], Programs]) -> Stack:
        """Install the stack of `key` on the module, from the cache or else from `programs`."""
        kept = self._kept.get(key)
        if kept is not None and fits(module, kept):
            return Stack(module, {}, layers=kept)
        stack = Stack(module, programs())
        if key in self._asked and (layers := stack.layers) is not None:
            self._kept.put(key, layers, stack.nbytes)
        self._asked.append(key)
        return stack

    def holds(self, stack: object) -> bool:
        """Return whether the layers of `stack` are kept here, and so already counted."""
        layers = stack.layers if isinstance(stack, Stack) else None
        first = next(iter(layers.values()), None) if layers else None
        return first is not None and any(first in kept.values() for kept, _ in self._kept.entries())

    def clear(self) -> None:
        """Free every stack that is not on a model."""
        self._kept.clear()


def _cache_edits(programs: Programs) -> tuple[Programs, int]:
    """Return the programs with their edits cached, and the size of these edits in bytes."""
    cached = ready(programs)
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
