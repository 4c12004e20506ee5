"""A program: the edits that a chain makes to one tensor of the base, the ancestors' edits first, then the leaf's."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loratree_composer.arithmetic.edits import Add, Edit, joined
from loratree_composer.arithmetic.precision import full_float32

Named = tuple[str, float]  # a version's digest and its level weight
Key = tuple[tuple[Named, ...], Named | None]  # the ancestors that edit a tensor; the last level, if it does too


@dataclass(frozen=True, slots=True, eq=False)
class ChainStep:
    """One version of a chain with its level weight, and its edits by the base's tensor names, made at each access.

    `digest` names the version. An empty digest names nothing, so no result that depends on this step is reused.
    """

    digest: str
    weight: float
    edits: Mapping[str, tuple[Edit, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The edits of one tensor, in order: the ancestors' edits, joined, and then the edits of the chain's last level.

    The ancestors and the last level are summed one after the other, never as one product, so that a cached sum of the
    ancestors gives the same bits as a new sum. Edits are as large as the factors, so each access makes them again,
    unless `cached_edits` holds both. Programs with equal keys have equal results on one base.
    """

    name: str
    ancestor_steps: tuple[ChainStep, ...] = ()
    leaf_step: ChainStep | None = None
    cached_edits: tuple[tuple[Edit, ...], tuple[Edit, ...]] | None = None

    def with_cached_edits(self) -> "Program":
        """Return the program with its edits cached, so that a merge has nothing to fold or concatenate."""
        return replace(self, cached_edits=(_add_bounds(self.ancestor_edits), _add_bounds(self.leaf_edits)))

    @property
    def ancestor_edits(self) -> tuple[Edit, ...]:
        """The ancestors' edits."""
        if self.cached_edits is not None:
            return self.cached_edits[0]
        return joined([edit for level in self.ancestor_steps for edit in level.edits[self.name]])

    @property
    def leaf_edits(self) -> tuple[Edit, ...]:
        """The last level's edits."""
        if self.cached_edits is not None:
            return self.cached_edits[1]
        return () if self.leaf_step is None else joined(self.leaf_step.edits[self.name])

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits, root to leaf."""
        return (*self.ancestor_edits, *self.leaf_edits)

    @property
    def joined_edits(self) -> tuple[Edit, ...]:
        """All edits, root to leaf, with the ancestors' product and the last level's joined into one."""
        if self.cached_edits is not None:
            return joined(self.edits)
        steps = self.ancestor_steps if self.leaf_step is None else (*self.ancestor_steps, self.leaf_step)
        return joined([edit for level in steps for edit in level.edits[self.name]])

    @property
    def above_key(self) -> Key:
        """The name of the ancestors' sum on a given base."""
        return tuple((level.digest, level.weight) for level in self.ancestor_steps), None

    @property
    def key(self) -> Key:
        """The name of the result on a given base, to the bit: the levels, and which level is the last."""
        last = None if self.leaf_step is None else (self.leaf_step.digest, self.leaf_step.weight)
        return self.above_key[0], last


def is_known(key: Key) -> bool:
    """Return whether a key names a result: the key has levels, and every level has a digest."""
    above, last = key
    levels = above if last is None else (*above, last)
    return bool(levels) and all(digest for digest, _ in levels)


def ready(programs: Mapping[str, Program]) -> dict[str, Program]:
    """Return the programs with their edits cached, so that a merge has nothing to fold or concatenate."""
    with full_float32():  # once around all edits: each entry costs as much as folding a small factor
        return {name: program.with_cached_edits() for name, program in programs.items()}


def _add_bounds(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    return tuple(replace(edit, bound=edit.largest()) if isinstance(edit, Add) else edit for edit in edits)


def programs(levels: Sequence[ChainStep]) -> dict[str, Program]:
    """Return the program of each edited tensor, by name, for levels from root to leaf."""
    above: dict[str, list[ChainStep]] = defaultdict(list)
    for level in levels[:-1]:
        for name in level.edits:
            above[name].append(level)
    leaf = set(levels[-1].edits) if levels else set()
    names = sorted(above.keys() | leaf)
    return {name: Program(name, tuple(above[name]), levels[-1] if name in leaf else None) for name in names}
