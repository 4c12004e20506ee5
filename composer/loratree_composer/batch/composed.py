"""A batch of paths as a Composer gives it out: which path each row takes, until the block ends."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loratree_composer.adapters.adapter import WeightedChain
from loratree_composer.batch.mixed_batch import MixedBatch
from loratree_registry.core.records import Resolution
from loratree_registry.core.text import counted
from loratree_registry.errors import Invalid, listed

Weights = Mapping[str, float]  # level weights by path
RowWeights = Weights | Sequence[Weights | None] | None  # of all rows, or of each
Chains = tuple[Resolution, WeightedChain]
Ref = str | Resolution  # a path of the tree, or what an earlier call has resolved one to
Read = Callable[[Ref, Weights | None], Chains]
Above = tuple[tuple[str, float], ...]  # the digests and level weights of what is merged


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read for a batch: a chain for each row or segment, and the levels that are merged below all of them.

    `merged` is a chain that begins with the `depth` merged levels, and `above` names these; None and () without any.
    """

    read: Sequence[Chains]
    lengths: Sequence[int] | None
    depth: int = 0
    merged: Chains | None = None
    above: Above = ()


class Batch:
    """The paths of a model's passes: one for each row, or for each segment of its tokens.

    `resolutions` are what they resolve to. `assign` replaces them between two passes; it changes no layer of the model
    if the new paths change the same layers.
    """

    def __init__(self, mixed: MixedBatch, read: Read, merged: str | None, *, static: bool = False) -> None:
        self._mixed, self._read, self._merged, self._static = mixed, read, merged, static
        self._weights: RowWeights = None
        self._above: Above | None = None
        self.reading: Reading | None = None  # what the model has, or had before a block inside this batch's
        self.resolutions: list[Resolution] = []

    def assign(
        self, refs: Sequence[Ref], *, lengths: Sequence[int] | None = None, weights: RowWeights = None
    ) -> list[Resolution]:
        """Let the next passes take these paths, and return what each resolves to.

        Without `lengths`, each row of the model's input takes a path. With them, each segment of an input that packs
        sequences does: so many tokens. `weights` are level weights by path, for all rows or for each row. A path that
        is given as its Resolution is not asked for again: with its versions in memory, no file and no server is. If an
        error is raised, the paths of before stay.
        """
        if self._above is None:
            raise Invalid("the batch is over: assign paths inside its `with` block")
        reading = self.prepare(refs, lengths, weights)
        if reading.above != self._above:
            raise Invalid(
                f"other versions are merged down to {self._merged} than these paths have: begin another batch"
            )
        return self.start(reading)

    def prepare(self, refs: Sequence[Ref], lengths: Sequence[int] | None, weights: RowWeights) -> Reading:
        """Read the chain of each ref; of rows that are alike, once. Raises Invalid if they make no batch."""
        _check_lengths(refs, lengths)
        read: dict[tuple[str, object], Chains] = {}
        keys = []
        for ref, own in zip(refs, _spread(refs, weights), strict=True):
            name = ref if isinstance(ref, str) else ref.composition
            keys.append((name, tuple(sorted((own or {}).items()))))
            if keys[-1] not in read:
                read[keys[-1]] = self._read(ref, own)
        depth = self._find_depth([of for of, _ in read.values()])
        self._weights, first = weights, read[keys[0]]
        return Reading([read[key] for key in keys], lengths, depth, first, _above(first[0], depth))

    def prepare_requests(self, weights: Weights | None) -> Reading:
        """Read what is merged below requests that take paths of their own."""
        self._weights = weights
        if self._merged is None:
            return Reading([], None)
        merged = self._read(self._merged, weights)
        depth = len(merged[0].chain)
        return Reading([], None, depth, merged, _above(merged[0], depth))

    def read_row(self, ref: str) -> WeightedChain:
        """Return the levels of a path that are not merged, for a request that comes while the batch is on the model.

        Raises Invalid if other levels are merged than the path's own.
        """
        resolution, chain = self._read(ref, self._weights if isinstance(self._weights, Mapping) else None)
        above = self._above or ()
        if _above(resolution, len(above)) != above:
            raise Invalid(f"{ref} has other versions down to {self._merged}, which is merged: leave `merged` out")
        return chain[len(above) :]

    def start(self, reading: Reading) -> list[Resolution]:
        """Put the paths on the model."""
        chains = [chain[reading.depth :] for _, chain in reading.read]
        self._mixed.set(chains, reading.lengths, static=self._static)
        self._above, self.reading = reading.above, reading
        self.resolutions = [resolution for resolution, _ in reading.read]
        return self.resolutions

    def end(self) -> None:
        """Refuse to assign paths from now on."""
        self._above = None

    def _find_depth(self, resolutions: Sequence[Resolution]) -> int:
        """Return how many versions of every chain are merged. Raises Invalid unless all chains begin with the same."""
        if self._merged is None:
            return 0
        above, without = set[Above](), []
        for resolution in resolutions:
            paths = [link.path for link in resolution.chain]
            if self._merged in paths:
                above.add(_above(resolution, paths.index(self._merged) + 1))
            else:
                without.append(resolution.ref)
        if without or len(above) > 1:
            raise Invalid(
                f"{self._merged} cannot be merged for the batch, because "
                + (f"it is not in the chain of {listed(without, limit=3)}" if without else "the chains differ above it")
                + ": leave `merged` out, or put the paths into batches of their own"
            )
        return len(above.pop())


def _above(resolution: Resolution, depth: int) -> Above:
    return tuple((link.digest, link.weight) for link in resolution.chain[:depth])


def check_ref(ref: object) -> None:
    """Raise Invalid unless `ref` is a path, perhaps with a version, or a Resolution."""
    if not isinstance(ref, str | Resolution):
        raise Invalid(f"a path is text such as tiny/medicine@2, or a Resolution of it, got {type(ref).__name__}")


def _check_lengths(refs: Sequence[Ref], lengths: Sequence[int] | None) -> None:
    if isinstance(refs, str) or not isinstance(refs, Sequence) or not refs:
        raise Invalid("a batch takes a list of paths, one for each row of the model's input")
    for ref in refs:
        check_ref(ref)
    if lengths is None:
        return
    if len(lengths) != len(refs) or any(type(length) is not int or length < 1 for length in lengths):
        raise Invalid(
            f"a batch of {counted(len(refs), 'segment')} takes as many lengths, each a whole number of tokens from 1, "
            f"got {list(lengths)[:8]}"
        )


def _spread(refs: Sequence[Ref], weights: RowWeights) -> Sequence[Weights | None]:
    """Return the level weights of each row."""
    if weights is None or isinstance(weights, Mapping):
        return [weights] * len(refs)
    if len(weights) != len(refs):
        given = f"got level weights for {len(weights)}: give one mapping for each"
        raise Invalid(f"a batch of {counted(len(refs), 'path')} {given}")
    return weights
