"""A version as a mixed batch holds it: its rows in the slab, and what it changes beside them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from loratree_composer.arithmetic.edits import Add, Edit, ReplaceRows, Rescale, Shift
from loratree_composer.arithmetic.lowrank import LowRank, concat
from loratree_composer.base.layer_kind import TRANSPOSED
from loratree_composer.batch.slab import Place, RankRows


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A version: the place of its rows, None if it has no delta, and its other edits by the names of the tensors.

    `magnitudes` are DoRA's [out], `rows` the replaced rows of a weight in its layer's dtype, `shifts` what is added to
    a bias [out]. `whole` are the tensors that it changes in another way, which all paths of a batch must share.
    `bound` bounds every |value| of its B A.
    """

    digest: str
    place: Place | None
    magnitudes: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Mapping[str, ReplaceRows] = field(default_factory=dict)
    shifts: Mapping[str, Tensor] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    bound: float = 0.0

    @property
    def beside_products(self) -> set[str]:
        """The names of the tensors that it changes by row in another way than by a product."""
        return {*self.magnitudes, *self.rows, *self.shifts}

    @property
    def layers(self) -> set[str]:
        """The names of the layers that it changes beside their weights."""
        names = [*self.magnitudes, *self.rows, *self.shifts, *(self.place.block.a if self.place else ())]
        return {name.rpartition(".")[0] for name in names}

    @property
    def nbytes(self) -> int:
        """The size of everything in bytes."""
        others = [*self.magnitudes.values(), *self.shifts.values(), *(edit.value for edit in self.rows.values())]
        return (self.place.nbytes if self.place else 0) + sum(tensor.nbytes for tensor in others)


def rank_rows(edits: Sequence[Edit]) -> RankRows | None:
    """Return the rows of rank of a version's deltas of one matrix, DoRA's included; None if it has no delta."""
    deltas = [edit for edit in edits if isinstance(edit, Add | Rescale)]
    if not deltas:
        return None
    delta: LowRank = concat([edit.delta for edit in deltas])
    # y = x W for a weight that is stored as [in, out], and for an embedding, whose x are rows of the identity.
    is_transposed = TRANSPOSED.get(deltas[0].kind, True)
    return RankRows(delta.b.mT, delta.a) if is_transposed else RankRows(delta.a, delta.b.mT)


def is_mixable(edits: Sequence[Edit], kind: str) -> bool:
    """Return whether the edits of a weight of a layer of `kind` can differ between the rows of a batch.

    They are deltas; or replaced rows, then deltas; and at most one DoRA, as the last.
    """
    if kind not in (*TRANSPOSED, "Embedding"):
        return False
    order = [_stage_of(edit) for edit in edits]
    once = all(order.count(stage) <= 1 for stage in ("1 rows", "3 dora"))
    return None not in order and order == sorted(order, key=str) and once


def _stage_of(edit: Edit) -> str | None:
    match edit:
        case ReplaceRows():
            return "1 rows"
        case Add(groups=1):
            return "2 add"
        case Rescale():
            return "3 dora"
        case _:
            return None


def shifts_of(edits: Mapping[str, Sequence[Edit]]) -> Iterator[tuple[str, Tensor]]:
    """Yield each bias that the edits only add to, with the sum of what is added, in float32."""
    for name, of in edits.items():
        if of and all(isinstance(edit, Shift) for edit in of):
            total = of[0].value.clone()  # type: ignore[union-attr]
            for edit in of[1:]:
                total += edit.value  # type: ignore[union-attr]
            yield name, total
