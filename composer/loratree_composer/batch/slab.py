"""The slab: the low-rank factors of many versions, a slot each, in a few large tensors for each layer."""

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

_SPARE: Final = 16 << 20  # bytes that a block may have beyond what was asked for, in at most _SLOTS slots
_SLOTS: Final = 8

Form = tuple[tuple[str, int, int, int], ...]  # of a version: each weight's name with its rank, in and out, sorted


@dataclass(frozen=True, slots=True, eq=False)
class RankRows:
    """A version's delta of one weight as rows of rank: y += (x Aᵀ) B, with a [rank, in] and b [rank, out].

    Every scale is in b. A level weight is not, because it belongs to the rows of a batch.
    """

    a: Tensor
    b: Tensor


class Block:
    """Memory for `slots` versions of one form: for each weight, a [slots, rank, in] and b [slots, rank, out]."""

    def __init__(self, form: Form, slots: int, dtypes: Mapping[str, torch.dtype], device: torch.device) -> None:
        self.form, self.slots = form, slots
        self.a: dict[str, Tensor] = {}
        self.b: dict[str, Tensor] = {}
        for name, rank, into, out in form:
            self.a[name] = torch.zeros(slots, rank, into, dtype=dtypes[name], device=device)
            self.b[name] = torch.zeros(slots, rank, out, dtype=dtypes[name], device=device)
        self._free = list(range(slots))

    @property
    def nbytes(self) -> int:
        """The size in bytes, with the free slots."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def is_full(self) -> bool:
        """True if every slot is taken."""
        return not self._free

    @property
    def is_empty(self) -> bool:
        """True if no slot is taken."""
        return len(self._free) == self.slots

    def take(self) -> int:
        """Take the lowest free slot, so that versions that come one after the other lie side by side."""
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        """Zero a slot's rows, and let the next version have it."""
        for tensor in self._tensors():
            tensor[slot].zero_()
        heapq.heappush(self._free, slot)

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.a.values()
        yield from self.b.values()


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a version's rows are: a slot of a block."""

    block: Block
    slot: int

    @property
    def nbytes(self) -> int:
        """The size of the rows in bytes."""
        return sum(tensor[self.slot].nbytes for tensor in (*self.block.a.values(), *self.block.b.values()))


class Slab:
    """The rows of versions, on one device, in the dtype that each layer's weight has.

    Versions of one form (the same weights, ranks and sizes) share blocks. So neighbours are one tensor, and a product
    over many of them needs no copy. Rows that are given back are zeroed.
    """

    def __init__(self, dtypes: Mapping[str, torch.dtype], device: torch.device) -> None:
        self._dtypes, self._device = dtypes, device
        self._blocks: dict[Form, list[Block]] = defaultdict(list)

    @property
    def nbytes(self) -> int:
        """The size in bytes of all blocks, with their free slots."""
        return sum(block.nbytes for blocks in self._blocks.values() for block in blocks)

    def put(self, rows: Mapping[str, RankRows], *, coming: int = 1) -> Place:
        """Copy a version's rows in, by the names of the weights, and return their place.

        `coming` is how many versions of this form are put in now, this one included: they get one block.
        """
        form = tuple((name, *rows[name].a.shape, rows[name].b.shape[1]) for name in sorted(rows))
        block = self._find_block(form, coming)
        place = Place(block, block.take())
        try:
            for name, one in rows.items():
                block.a[name][place.slot].copy_(one.a)
                block.b[name][place.slot].copy_(one.b)
        except BaseException:
            self.drop(place)
            raise
        return place

    def drop(self, place: Place) -> None:
        """Free the rows at a place."""
        block = place.block
        block.give_back(place.slot)
        if block.is_empty:
            self._blocks[block.form].remove(block)

    def _find_block(self, form: Form, coming: int) -> Block:
        for block in self._blocks[form]:
            if not block.is_full:
                return block
        size = sum(rank * (into + out) * self._dtypes[name].itemsize for name, rank, into, out in form)
        spare = min(_SLOTS, max(1, _SPARE // max(1, size)))
        block = Block(form, max(coming, spare), self._dtypes, self._device)
        self._blocks[form].append(block)
        return block
