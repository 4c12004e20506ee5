"""The plan of a batch: which versions each token takes, as few products as there are runs of neighbours."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loratree_composer.batch.node import Node
from loratree_composer.batch.slab import Block

Path = Sequence[tuple[Node, float]]  # the versions of one path, root to leaf, with their level weights
Prefix = tuple[tuple[str, float], ...]  # the digests and level weights of a path down to a version


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring slots of a block, one for each of `count` neighbouring groups of `each` tokens from `start` on.

    `weights` are the tokens' level weights, or None if all are 1.
    """

    block: Block
    slot: int
    count: int
    start: int
    each: int
    weights: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens, from `start` to `stop`, whose paths are the same down to one version: `path` ends there."""

    path: Path
    start: int
    stop: int

    @property
    def node(self) -> Node:
        """The version."""
        return self.path[-1][0]

    @property
    def prefix(self) -> Prefix:
        """What names the sum down to the version."""
        return prefix_of(self.path)


@dataclass(frozen=True, slots=True)
class Level:
    """What happens at one depth: products of runs, and spans of the versions that do more than add products."""

    runs: list[Run]
    spans: list[Span]


class Plan:
    """The levels of a batch, root to leaf, over its segments in the order in which they make the fewest runs.

    `lengths` are the segments' numbers of tokens; without them, each segment is a row. A pass with `factor` times as
    many tokens gives each segment `factor` times as many, in place: a row's path is that of its tokens, and of its
    beams. `depths` are, by the name of a weight, how many levels of every path are in the weight itself.
    """

    def __init__(
        self, paths: Sequence[Path], lengths: Sequence[int] | None = None, depths: dict[str, int] | None = None
    ) -> None:
        self.paths, self.lengths = tuple(map(tuple, paths)), tuple(lengths or [1] * len(paths))
        self.tokens, self.is_rows, self.depths = sum(self.lengths), lengths is None, depths or {}
        given, by_place = range(len(paths)), sorted(range(len(paths)), key=self._place_of)
        levels, sorted_levels = self._find_levels(given), self._find_levels(by_place)
        is_ordered = _count_runs(levels) <= _count_runs(sorted_levels)
        self.order: Sequence[int] | None = None if is_ordered else by_place
        self.levels = levels if is_ordered else sorted_levels
        self._indices: dict[int, tuple[Tensor, Tensor]] = {}

    def paths_of(self, name: str) -> list[Path]:
        """Return the paths without the levels that the tensor `name` itself holds."""
        return [path[self.depths.get(name, 0) :] for path in self.paths]

    def indices(self, factor: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Return the tokens in the plan's order, and each token's place in it; None if they are in order already."""
        if self.order is None:
            return None
        if factor not in self._indices:
            starts = [0]
            for length in self.lengths:
                starts.append(starts[-1] + length)
            spans = [torch.arange(factor * starts[at], factor * starts[at + 1]) for at in self.order]
            there = torch.cat(spans).to(device)
            self._indices[factor] = there, torch.argsort(there)
        return self._indices[factor]

    def _place_of(self, at: int) -> tuple[tuple[int, int, str], ...]:
        return tuple(
            (id(node.place.block), node.place.slot, node.digest) if node.place else (0, 0, node.digest)
            for node, _ in self.paths[at]
        )

    def _find_levels(self, order: Sequence[int]) -> list[Level]:
        return [self._find_level(order, depth) for depth in range(max(map(len, self.paths), default=0))]

    def _find_level(self, order: Sequence[int], depth: int) -> Level:
        runs: list[Run] = []
        for group in self._find_groups(order, depth, lambda path: path[-1][0]):
            if (run := _run_of(group)) is not None:
                joined = _join(runs[-1], run) if runs else None
                runs[-1:] = [joined] if joined is not None else [*runs[-1:], run]
        spans = [
            Span(group.paths[0], group.start, group.start + sum(group.lengths))
            for group in self._find_groups(order, depth, prefix_of)
            if _does_more(group.paths[0][-1][0])
        ]
        return Level(runs, spans)

    def _find_groups(self, order: Sequence[int], depth: int, key_of: Callable[[Path], Hashable]) -> Iterator["_Group"]:
        """Yield the neighbouring segments with one key, a function of their paths down to `depth`."""
        group: _Group | None = None
        start = 0
        for at in order:
            path = self.paths[at][: depth + 1]
            key = key_of(path) if len(path) > depth else None
            if group is not None and group.key != key:
                yield group
                group = None
            if key is not None:
                group = group or _Group(key, start, [], [])
                group.paths.append(path)
                group.lengths.append(self.lengths[at])
            start += self.lengths[at]
        if group is not None:
            yield group


@dataclass(frozen=True, slots=True)
class _Group:
    """Neighbouring segments, from token `start` on: their paths down to one depth, and their numbers of tokens."""

    key: Hashable
    start: int
    paths: list[Path]
    lengths: list[int]


def prefix_of(path: Path) -> Prefix:
    """Return what names the sum of a path."""
    return tuple((node.digest, weight) for node, weight in path)


def _does_more(node: Node) -> bool:
    return bool(node.magnitudes or node.rows or node.shifts)


def _count_runs(levels: Sequence[Level]) -> int:
    return sum(len(level.runs) + len(level.spans) for level in levels)


def _run_of(group: _Group) -> Run | None:
    place = group.paths[0][-1][0].place
    if place is None:
        return None
    weights = [
        weight for path, length in zip(group.paths, group.lengths, strict=True) for weight in [path[-1][1]] * length
    ]
    is_plain = all(weight == 1 for weight in weights)
    return Run(place.block, place.slot, 1, group.start, len(weights), None if is_plain else tuple(weights))


def _join(run: Run, other: Run) -> Run | None:
    """Return the two as one run, if `other` goes on where `run` ends: in tokens, in slots, and with as many tokens."""
    is_next = (
        other.block is run.block
        and other.slot == run.slot + run.count
        and other.each == run.each
        and other.start == run.start + run.count * run.each
    )
    if not is_next:
        return None
    weights = None
    if run.weights is not None or other.weights is not None:
        weights = (run.weights or (1.0,) * (run.count * run.each)) + (other.weights or (1.0,) * other.each)
    return Run(run.block, run.slot, run.count + other.count, run.start, run.each, weights)
