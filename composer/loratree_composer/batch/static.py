"""A batch in tensors whose shapes and addresses stay: for code that torch.compile or a CUDA graph has captured.

All versions of a batch lie side by side, and each token takes its own by a mask: y += ((x Aᵀ) ⊙ M) B. It computes
every version for every token, so on a CPU the runs of a plan are faster. On a device, decoding waits for memory, and
this reads each version once. The mask selects and never multiplies: what overflows in one row's product reaches no
other row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from loratree_composer.batch.plan import Path
from loratree_registry.errors import Invalid

_STEP: Final = 64  # ranks: a batch with a few more than the one before still fits

Ranks = dict[str, int]  # of each version on one layer, by its digest
Lengths = Sequence[int] | None
Key = tuple[tuple[tuple[str, int], ...], torch.dtype]


class Layout:
    """Where versions lie along the rank of the layers that have the same ranks, and who takes them.

    weights is [paths, ranks]: the level weight of each rank row for each path, 0 where the path does not take it. If
    the batch has segments, `segments` is [tokens], the path of each token.
    """

    def __init__(self, ranks: Ranks, paths: int, lengths: Lengths, like: Tensor) -> None:
        self.capacity = -(-max(1, sum(ranks.values())) // _STEP) * _STEP
        self.weights = torch.zeros(paths, self.capacity, dtype=like.dtype, device=like.device)
        self.segments = None if lengths is None else torch.empty(sum(lengths), dtype=torch.int64, device=like.device)
        self.starts: dict[str, tuple[int, int]] = {}  # of each version, with its rank

    @property
    def tokens(self) -> int:
        """The number of tokens that a pass must have, or a multiple of it: one for each row, or each segment's own."""
        return len(self.weights) if self.segments is None else len(self.segments)

    def fits(self, ranks: Ranks, paths: int, lengths: Lengths) -> bool:
        """Return whether another batch fits without a change of shape."""
        is_same_form = (lengths is None) == (self.segments is None)
        tokens = paths if lengths is None else sum(lengths)
        is_same_size = paths == len(self.weights) and tokens == self.tokens
        return is_same_form and is_same_size and sum(ranks.values()) <= self.capacity

    def set(self, paths: Sequence[Path], lengths: Lengths, ranks: Ranks) -> None:
        """Find a place for each version, and write who takes it."""
        used = sum(rank for _, rank in self.starts.values())
        new = [digest for digest in ranks if digest not in self.starts]
        if used + sum(ranks[digest] for digest in new) > self.capacity:
            used, new, self.starts = 0, list(ranks), {}
        for digest in new:
            self.starts[digest] = used, ranks[digest]
            used += ranks[digest]
        weights = torch.zeros(self.weights.shape, dtype=self.weights.dtype)
        for at, path in enumerate(paths):
            for node, weight in path:
                if node.digest in ranks:
                    start, rank = self.starts[node.digest]
                    weights[at, start : start + rank] = weight
        self.weights.copy_(weights)
        if self.segments is not None and lengths is not None:
            self.segments.copy_(torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)))


@dataclass(slots=True, eq=False)
class StaticRows:
    """One layer's versions side by side: a [ranks, in], b [ranks, out], and their layout."""

    layout: Layout
    a: Tensor
    b: Tensor
    held: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The size of the rows in bytes."""
        return self.a.nbytes + self.b.nbytes

    def fill(self, name: str, paths: Sequence[Path]) -> None:
        """Copy the versions of the paths that the layout has a new place for."""
        places = {node.digest: node.place for path in paths for node, _ in path}
        starts = self.layout.starts
        self.held = {digest: at for digest, at in self.held.items() if starts.get(digest) == at}
        for digest, (start, rank) in starts.items():
            place = places.get(digest)
            if place is not None and digest not in self.held:
                self.a[start : start + rank].copy_(place.block.a[name][place.slot])
                self.b[start : start + rank].copy_(place.block.b[name][place.slot])
                self.held[digest] = start, rank

    def add(self, inner: Tensor, y: Tensor) -> Tensor:
        """Return y [..., out] with the deltas, for the inner product x Aᵀ [tokens, ranks]. Raises Invalid."""
        weights, tokens = self.layout.weights, len(inner)
        if tokens % self.layout.tokens:
            raise Invalid(
                f"the model got {tokens} tokens for a static batch of {self.layout.tokens}: give one path for each row "
                "of its input, or lengths that add up to its tokens"
            )
        if self.layout.segments is not None:
            weights = weights[self.layout.segments]
        if tokens != self.layout.tokens:
            weights = weights.repeat_interleave(tokens // self.layout.tokens, 0)
        inner = torch.where(weights != 0, inner * weights, 0)
        return y + functional.linear(inner, self.b.mT).view(y.shape)


def lay_out(
    weights: Mapping[str, Tensor],
    paths_of: Callable[[str], Sequence[Path]],
    lengths: Lengths,
    before: Mapping[str, StaticRows],
) -> dict[str, StaticRows]:
    """Return the rows of each layer for a batch, by the weights' names: those of `before`, if the batch fits them.

    Layers that have the same ranks share a layout.
    """
    rows: dict[str, StaticRows] = {}
    layouts: dict[Key, Layout] = {}
    taken: dict[int, Key] = {}  # a layout of before stays with the layers of one key
    for name, weight in weights.items():
        paths = paths_of(name)
        ranks = find_ranks(name, paths)
        key, known = (tuple(ranks.items()), weight.dtype), before.get(name)
        is_kept = known is not None and known.layout.fits(ranks, len(paths), lengths)
        if known is None or not is_kept or taken.get(id(known.layout), key) != key:
            if not ranks:
                continue
            if key not in layouts:
                layouts[key] = Layout(ranks, len(paths), lengths, weight)
            known = StaticRows(layouts[key], *_make_rows(name, paths, layouts[key].capacity))
        if id(known.layout) not in taken:
            taken[id(known.layout)] = key
            known.layout.set(paths, lengths, ranks)
        known.fill(name, paths)
        rows[name] = known
    return rows


def find_ranks(name: str, paths: Sequence[Path]) -> Ranks:
    """Return the rank that each version of the paths has on the weight `name`, in the order of the paths."""
    places = {node.digest: node.place for path in paths for node, _ in path if node.place is not None}
    return {digest: place.block.a[name].shape[1] for digest, place in places.items() if name in place.block.a}


def _make_rows(name: str, paths: Sequence[Path], capacity: int) -> tuple[Tensor, Tensor]:
    """Return empty a [ranks, in] and b [ranks, out]."""
    block = next(node.place.block for path in paths for node, _ in path if node.place and name in node.place.block.a)
    a, b = block.a[name], block.b[name]
    return a.new_zeros(capacity, a.shape[2]), b.new_zeros(capacity, b.shape[2])
