"""What one level of a chain does to one tensor of the base, the way round that the tensor is stored."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from loratree_composer.lowrank import LowRank, concat


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """W ← W + B A. A convolution's W [out, in, …] is taken as the matrix [out, in·…]; W of experts is [experts, p, q].

    `kind` is the kind of layer that the delta was made for. With `groups` > 1, for a grouped convolution, b is
    [out, rank/groups]: no value of W gives that delta, so it can be stacked and not merged. `bound` is delta.largest()
    where it is known.
    """

    delta: LowRank
    kind: str = "Linear"
    groups: int = 1
    bound: float | None = None

    def largest(self) -> float:
        """A number that no |value| of B A exceeds."""
        return self.delta.largest() if self.bound is None else self.bound


@dataclass(frozen=True, slots=True, eq=False)
class Rescale:
    """W ← g ⊙ (W + B A), g = magnitude / ‖W + B A‖ (DoRA): the norm of each output of the running sum.

    magnitude is [out], and `dim` the dimension of the stored matrix that counts outputs: 0, or 1 where it is kept as
    [in, out]. Source: DoRA, arXiv:2402.09353, equation 5.
    """

    delta: LowRank
    magnitude: Tensor
    dim: int = 0
    kind: str = "Linear"


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """b ← b + value, of b's shape: what lora_bias adds."""

    value: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Replace:
    """W ← value, of W's shape; what lay above no longer counts."""

    value: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ReplaceRows:
    """W[rows] ← value; rows [n] int64, value [n, …]; what lay above no longer counts in these rows."""

    rows: Tensor
    value: Tensor


Edit = Add | Rescale | Shift | Replace | ReplaceRows


def joined(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """The same edits with neighbouring Adds as one product, and nothing before the last Replace."""
    found: list[Edit] = []
    adds: list[Add] = []
    for edit in edits[_last_replace(edits) :]:
        if isinstance(edit, Add) and edit.groups == 1:
            adds.append(edit)
            continue
        found += _one(adds)
        adds = []
        found.append(edit)
    return (*found, *_one(adds))


def _one(adds: Sequence[Add]) -> list[Edit]:
    return [Add(concat([add.delta for add in adds]), adds[-1].kind)] if adds else []


def _last_replace(edits: Sequence[Edit]) -> int:
    return max((index for index, edit in enumerate(edits) if isinstance(edit, Replace)), default=0)
