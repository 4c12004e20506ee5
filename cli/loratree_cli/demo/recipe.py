"""The recipe of the demo: the sizes, the steps and the five levels of its tree."""

from dataclasses import dataclass
from typing import Final

from loratree_cli.demo.corpus import CORPORA, Corpus, lesson


@dataclass(frozen=True, slots=True)
class Rung:
    """One level of the tree: its name, its path, its rank (None for the base) and its text."""

    name: str
    path: str
    rank: int | None
    corpus: Corpus

    @property
    def row(self) -> str:
        """The ladder's name for the model that ends at this level."""
        return self.name if self.rank is None else f"+{self.name}"

    @property
    def folder(self) -> str:
        """The last segment of the path."""
        return self.path.rpartition("/")[2]


_PATHS: Final = ("tiny", "medicine", "cardiology", "diagnosis", "alice")
_RANKS: Final = (None, 16, 8, 4, 2)
RUNGS: Final = tuple(
    Rung(corpus.name, "/".join(_PATHS[: depth + 1]), rank, corpus)
    for depth, (corpus, rank) in enumerate(zip(CORPORA, _RANKS, strict=True))
)
LEAF: Final = RUNGS[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Sizes, steps and rates: 0.6 million parameters, about a minute of training on two cores.

    A rate is the peak of the learning rate. `length` is in tokens, which are bytes. `held_out` is the number of
    documents per level that no training sees.
    """

    hidden: int = 128
    intermediate: int = 344
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 2
    length: int = 320
    batch: int = 8
    base_steps: int = 200
    adapter_steps: int = 40
    base_rate: float = 3e-3
    adapter_rate: float = 7e-3
    held_out: int = 32
    threads: int = 2
    seed: int = 0

    def steps(self, depth: int) -> int:
        """Return the number of the optimiser's steps at a level."""
        return self.adapter_steps if depth else self.base_steps

    def lesson(self, depth: int) -> list[str]:
        """Write the documents that a level trains on, each of them once."""
        return lesson(depth, (self.steps(depth) * self.batch + 1) * self.length, seed=self.seed)

    def held_out_text(self) -> list[list[str]]:
        """Write, for each level, documents that are in no lesson."""
        lessons = {document for depth in range(len(RUNGS)) for document in self.lesson(depth)}
        return [rung.corpus.held_out(self.held_out, seed=self.seed, lessons=lessons) for rung in RUNGS]
