"""What a chain does to each tensor of the base: its ancestors' edits, then the leaf's."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loratree_composer.edits import Edit, Replace, joined

Key = tuple[tuple[str, float], ...]  # (version digest, level weight) of each level that edits a tensor


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One version of a chain with its level weight folded in: its edits by the base's tensor names.

    `digest` names the version; an empty one names nothing, and what is made of it is never taken for known.
    """

    digest: str
    weight: float
    edits: Mapping[str, tuple[Edit, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The edits of one tensor, in order: those of the ancestors, joined, and those of the chain's last level.

    The two are summed one after the other, never as one product, so that a kept sum of the ancestors gives the same
    bits as a new one. The keys tell whether two programs do the same.
    """

    above: tuple[Edit, ...]
    leaf: tuple[Edit, ...]
    above_key: Key = ()
    leaf_key: Key = ()

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All of them, root to leaf."""
        return (*self.above, *self.leaf)

    @property
    def key(self) -> Key | None:
        """What names its outcome on a given base; None where a level has no digest."""
        key = (*self.above_key, *self.leaf_key)
        return key if key and all(digest for digest, _ in key) else None


Programs = Mapping[str, Program]


def programs(levels: Sequence[Level]) -> dict[str, Program]:
    """The program of each edited tensor, by name, of levels from root to leaf."""
    above: dict[str, list[Edit]] = defaultdict(list)
    keys: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for level in levels[:-1]:
        for name, edits in level.edits.items():
            above[name] += edits
            keys[name].append((level.digest, level.weight))
    leaf = levels[-1] if levels else Level("", 1.0, {})
    names = sorted(above.keys() | leaf.edits.keys())
    return {name: _program(above[name], tuple(keys[name]), leaf, leaf.edits.get(name, ())) for name in names}


def _program(above: Sequence[Edit], key: Key, leaf: Level, edits: tuple[Edit, ...]) -> Program:
    if any(isinstance(edit, Replace) for edit in edits):
        above, key = (), ()
    return Program(joined(above), joined(edits), key, ((leaf.digest, leaf.weight),) if edits else ())
