"""What a chain does to each tensor of the base: its ancestors' edits, then the leaf's."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loratree_composer.arithmetic.edits import Add, Edit, joined

Named = tuple[str, float]  # a version's digest and its level weight
Key = tuple[tuple[Named, ...], Named | None]  # the levels above that edit a tensor, and the last one if it does


@dataclass(frozen=True, slots=True, eq=False)
class ChainStep:
    """One version of a chain with its level weight: its edits by the base's tensor names, made when they are asked for.

    `digest` names the version; an empty one names nothing, and what is made of it is never taken for known.
    """

    digest: str
    weight: float
    edits: Mapping[str, tuple[Edit, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The edits of one tensor, in order: those of the ancestors, joined, and those of the chain's last level.

    The two are summed one after the other, never as one product, so that a kept sum of the ancestors gives the same
    bits as a new one. Edits are made of the levels at each access, as they are as large as the factors, unless `made`
    keeps those above and those of the leaf. The keys tell whether two programs do the same.
    """

    name: str
    ancestors: tuple[ChainStep, ...] = ()
    last: ChainStep | None = None
    made: tuple[tuple[Edit, ...], tuple[Edit, ...]] | None = None

    def ready(self) -> "Program":
        """The same program with its edits kept: a merge then has nothing to fold and to put side by side."""
        return replace(self, made=(_bounded(self.above), _bounded(self.leaf)))

    @property
    def above(self) -> tuple[Edit, ...]:
        """The ancestors' edits."""
        if self.made is not None:
            return self.made[0]
        return joined([edit for level in self.ancestors for edit in level.edits[self.name]])

    @property
    def leaf(self) -> tuple[Edit, ...]:
        """The last level's edits."""
        if self.made is not None:
            return self.made[1]
        return () if self.last is None else joined(self.last.edits[self.name])

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All of them, root to leaf."""
        return (*self.above, *self.leaf)

    @property
    def above_key(self) -> Key:
        """What names the ancestors' sum on a given base."""
        return tuple((level.digest, level.weight) for level in self.ancestors), None

    @property
    def key(self) -> Key:
        """What names the outcome on a given base, to the bit: the levels, and which of them is the last."""
        last = None if self.last is None else (self.last.digest, self.last.weight)
        return self.above_key[0], last


def is_known(key: Key) -> bool:
    """Tells whether a key names an outcome: there are levels, and every one has a digest."""
    above, last = key
    levels = above if last is None else (*above, last)
    return bool(levels) and all(digest for digest, _ in levels)


def _bounded(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    return tuple(replace(edit, bound=edit.largest()) if isinstance(edit, Add) else edit for edit in edits)


def programs(levels: Sequence[ChainStep]) -> dict[str, Program]:
    """The program of each edited tensor, by name, of levels from root to leaf."""
    above: dict[str, list[ChainStep]] = defaultdict(list)
    for level in levels[:-1]:
        for name in level.edits:
            above[name].append(level)
    leaf = set(levels[-1].edits) if levels else set()
    names = sorted(above.keys() | leaf)
    return {name: Program(name, tuple(above[name]), levels[-1] if name in leaf else None) for name in names}
