"""What one level of a chain does to one tensor of the base, the way round that the tensor is stored."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from loratree_composer.arithmetic.lowrank import LowRank, concat


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


def alike(one: Any, other: Any) -> bool:
    """Tells whether two edits, or parts of them, hold the same values."""
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
    """What is wrong with an edit for a tensor of `shape`, None where it fits."""
    expected, given = _shape(shape, edit), _given(edit)
    if expected != given:
        return f"has shape {list(shape)} and the adapter's part is {list(given)}, expected {list(expected)}"
    if isinstance(edit, Rescale) and tuple(edit.magnitude.shape) != (expected[edit.dim],):
        return f"has shape {list(shape)} and the adapter's magnitudes are {list(edit.magnitude.shape)}"
    return None


def _shape(shape: tuple[int, ...], edit: Edit) -> tuple[int, ...]:
    """The shape that an edit's part must have for a tensor of `shape`."""
    if isinstance(edit, ReplaceRows):
        return len(edit.rows), *shape[1:]
    if not isinstance(edit, Add | Rescale) or (len(shape) == 3 == edit.delta.a.ndim):
        return shape
    return (*shape[:1], math.prod(shape[1:]) * (edit.groups if isinstance(edit, Add) else 1))


def _given(edit: Edit) -> tuple[int, ...]:
    match edit:
        case Add(delta) | Rescale(delta):
            return delta.shape
        case Shift(value) | Replace(value) | ReplaceRows(_, value):
            return tuple(value.shape)
