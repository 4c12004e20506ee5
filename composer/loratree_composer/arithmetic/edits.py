"""Edits: the changes that one level of a chain makes to one tensor of the base, in the tensor's stored layout.

Edits are ordered, root to leaf, because a Rescale depends on the sum so far and a Replace discards that sum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from loratree_composer.arithmetic.lowrank import LowRank, concat


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """The edit W ← W + B A. A convolution's W [out, in, …] is read as [out, in·…]; W of experts is [experts, p, q].

    `kind` is the kind of layer that the delta was made for. In a grouped convolution `groups` is above 1 and b is
    [out, rank/groups]: no value of W gives such a delta, so it can be stacked but not merged. `bound` bounds
    every |value| of B A, computed when the adapter was read, or is None. A small bound rules an overflow out.
    """

    delta: LowRank
    kind: str = "Linear"
    groups: int = 1
    bound: float | None = None

    def largest(self) -> float:
        """Return a bound on every |value| of B A."""
        return self.delta.largest() if self.bound is None else self.bound


@dataclass(frozen=True, slots=True, eq=False)
class Rescale:
    """The edit W ← g ⊙ (W + B A) of DoRA, with g = magnitude / ‖W + B A‖, the norm of each output of the sum so far.

    magnitude is [out]. `dim` is the dimension of the stored matrix that counts outputs: 0, or 1 if the matrix is
    stored as [in, out]. Source: DoRA, arXiv:2402.09353, equation 5.
    """

    delta: LowRank
    magnitude: Tensor
    dim: int = 0
    kind: str = "Linear"


@dataclass(frozen=True, slots=True, eq=False)
class Shift:
    """The edit b ← b + value, where value has the shape of b: the effect of lora_bias."""

    value: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Replace:
    """The edit W ← value, where value has the shape of W. Earlier edits of W no longer count."""

    value: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class ReplaceRows:
    """The edit W[rows] ← value: rows [n] int64, value [n, …]. Earlier edits of these rows no longer count."""

    rows: Tensor
    value: Tensor


Edit = Add | Rescale | Shift | Replace | ReplaceRows


def joined(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Join neighbouring Adds into one product, and drop the edits before the last Replace."""
    result: list[Edit] = []
    adds: list[Add] = []
    for edit in edits[_find_last_replace(edits) :]:
        # A grouped Add stays apart: a merge refuses it anyway, and stacking and flattening join it group by group.
        if isinstance(edit, Add) and edit.groups == 1:
            adds.append(edit)
            continue
        result += _concat_adds(adds)
        adds = []
        result.append(edit)
    return (*result, *_concat_adds(adds))


def _concat_adds(adds: Sequence[Add]) -> list[Edit]:
    if not adds:
        return []
    bounds = [add.bound for add in adds if add.bound is not None]
    bound = sum(bounds) if len(bounds) == len(adds) else None
    return [Add(concat([add.delta for add in adds]), adds[-1].kind, bound=bound)]


def _find_last_replace(edits: Sequence[Edit]) -> int:
    return max((index for index, edit in enumerate(edits) if isinstance(edit, Replace)), default=0)


def alike(one: Any, other: Any) -> bool:
    """Return whether two edits, or two parts of edits, hold the same values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if is_dataclass(one):
        return all(alike(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    return bool(one == other)


def check_shape(shape: tuple[int, ...], edit: Edit) -> str | None:
    """Describe why an edit does not fit a tensor of `shape`, or return None if it fits."""
    expected, actual = _required_shape(shape, edit), _shape_of(edit)
    if expected != actual:
        return f"has shape {list(shape)} and the adapter's part is {list(actual)}, expected {list(expected)}"
    if isinstance(edit, Rescale) and tuple(edit.magnitude.shape) != (expected[edit.dim],):
        return f"has shape {list(shape)} and the adapter's magnitudes are {list(edit.magnitude.shape)}"
    return None


def _required_shape(shape: tuple[int, ...], edit: Edit) -> tuple[int, ...]:
    """Return the shape that an edit's part must have for a tensor of `shape`."""
    if isinstance(edit, ReplaceRows):
        return len(edit.rows), *shape[1:]
    if not isinstance(edit, Add | Rescale) or (len(shape) == 3 == edit.delta.a.ndim):
        return shape
    return (*shape[:1], math.prod(shape[1:]) * (edit.groups if isinstance(edit, Add) else 1))


def _shape_of(edit: Edit) -> tuple[int, ...]:
    match edit:
        case Add(delta) | Rescale(delta):
            return delta.shape
        case Shift(value) | Replace(value) | ReplaceRows(_, value):
            return tuple(value.shape)
