"""The float32 sums of a chain's ancestors, cached for the next leaf under the same ancestors."""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from loratree_composer.adapters.budget import Budget
from loratree_composer.arithmetic.edits import Replace
from loratree_composer.arithmetic.merge import FLOATS, merge_into
from loratree_composer.arithmetic.program import Key, Program, is_known

CACHE: Final = "prefix sums"


class PrefixSums:
    """The sums W + Σ sᵢBᵢAᵢ over the ancestors alone, in float32, for the tensors that the leaf edits too.

    Many leaves share their ancestors: with this sum in memory, a merge computes the leaf alone and gives the same bits.
    A sum is made for the second leaf under the same ancestors, so that switching between unrelated chains never pays
    for one. It is dropped when the ancestors change. The sums of a chain are made if all of them fit in the budget, and
    they are dropped first if another cache needs their memory.
    """

    def __init__(self, budget: Budget | None = None) -> None:
        self._budget = budget or Budget()
        self._budget.let_give_way(self._drop)
        self._do_fit = False
        self._before: dict[str, Key] = {}  # the ancestors of each tensor in the merge before the present one
        self._now: dict[str, Key] = {}
        self._sums: dict[str, tuple[Key, object, Tensor]] = {}

    def begin(self, programs: Mapping[str, Program], tensors: Mapping[str, Tensor]) -> None:
        """Record the ancestors of the next merge into `tensors`, and drop the sums of other ancestors."""
        self._before, self._now = self._now, {name: program.above_key for name, program in programs.items()}
        for name in [name for name, (key, *_) in self._sums.items() if self._now.get(name) != key]:
            self._take(name)
        needed = sum(_size(tensors[name]) for name, program in programs.items() if program.leaf_step is not None)
        self._do_fit = needed <= self._budget.left(CACHE)

    def of(
        self, name: str, tensor: Tensor, pristine: Callable[[], Tensor], origin: object, program: Program
    ) -> Tensor | None:
        """Return the sum of `program`'s ancestors for a weight like `tensor`, or None if no sum is cached or due.

        `pristine` reads the base's value, and `origin` is equal as long as that value is the same.
        """
        key = program.above_key
        if program.leaf_step is None or not is_known(key) or tensor.dtype not in FLOATS:
            return None
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        form = dtype, tensor.device, tensor.shape
        # Put back only if it still fits: every other way out then drops the stale sum.
        _, known_origin, cached = self._take(name) or (key, None, tensor)
        if origin is not None and known_origin == origin and (cached.dtype, cached.device, cached.shape) == form:
            return self._keep(name, key, origin, cached)
        # A leaf that begins with a Replace discards the sum of its ancestors, so none is made.
        if self._before.get(name) != key or isinstance(program.leaf_edits[0], Replace):
            return None
        if not self._do_fit:
            return None
        total = torch.empty_like(tensor, dtype=dtype, memory_format=torch.contiguous_format, requires_grad=False)
        merge_into(total, pristine(), program.ancestor_edits, name=name)
        return self._keep(name, key, origin, total)

    def clear(self) -> None:
        """Free every sum."""
        self._now, self._before = {}, {}
        self._drop()

    def _drop(self) -> None:
        for name in list(self._sums):
            self._take(name)

    def _keep(self, name: str, key: Key, origin: object, total: Tensor) -> Tensor:
        self._sums[name] = key, origin, total
        self._budget.add(CACHE, total.nbytes)
        return total

    def _take(self, name: str) -> tuple[Key, object, Tensor] | None:
        entry = self._sums.pop(name, None)
        if entry is not None:
            self._budget.add(CACHE, -entry[2].nbytes)
        return entry


def _size(tensor: Tensor) -> int:
    """Return the size of a sum for a weight like `tensor` in bytes."""
    return tensor.numel() * max(4, tensor.element_size())
