"""The normal form W' = R(g ⊙ W) + B A: a chain's effect on one matrix as one gain, replaced rows and one product B A.

Edits fold into the form one by one, so that a stacked chain of any depth costs one gain and one pair of products.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loratree_composer.arithmetic.edits import Add, Edit, ReplaceRows, Rescale
from loratree_composer.arithmetic.lowrank import LowRank, concat
from loratree_composer.arithmetic.merge import ROWS, gain, output_norms
from loratree_composer.arithmetic.precision import full_float32

LayerEdit = Add | Rescale | ReplaceRows  # the edits that have a normal form


@dataclass(frozen=True, slots=True, eq=False)
class NormalForm:
    """The normal form of edits on a matrix W [p, q] in its stored layout: a gain for each output, new rows, and B A.

    delta has a [r, q] and b [p, r/groups]. `dim` is the dimension of W that counts outputs. gain is [p] if `dim` is 0
    and [q] if it is 1; None means 1. R sets the rows [n] to values [n, q]. All are float32 or wider, on W's device.
    """

    delta: LowRank
    rows: Tensor
    values: Tensor
    gain: Tensor | None = None
    dim: int = 0
    groups: int = 1

    def matrix(self, weight: Tensor, here: slice) -> Tensor:
        """Return the rows `here` of W', in float32 or wider."""
        result = weight[here].to(self.delta.a.dtype, copy=True)
        if self.gain is not None:
            result.mul_(_align(self.gain, self.dim)[here] if self.dim == 0 else self.gain)
        inside = (self.rows >= here.start) & (self.rows < here.stop)
        result[self.rows[inside] - here.start] = self.values[inside]
        return result.addmm_(self.delta.b[here], self.delta.a)


def normal_form(weight: Tensor, edits: Sequence[Edit]) -> NormalForm:
    """Return the normal form of `edits` on `weight`, in order: Adds, Rescales and ReplaceRows.

    A Rescale reads the weight once, a block of rows at a time: its gain m/‖W'‖ depends on the sum so far, and scales
    all earlier edits. A ReplaceRows sets its rows of B to zero. A convolution's weight is read as [out, in·kernel].
    """
    matrix = weight.detach().reshape(len(weight), -1)
    wide = torch.promote_types(weight.dtype, torch.float32)
    with full_float32():
        form = _start_form(matrix, wide)
        for edit in edits:
            assert isinstance(edit, LayerEdit)
            form = _apply(form, edit, matrix)
    return form


def last_gain(weight: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Return the gain of the last of `edits`, a Rescale, alone: m / ‖W + Σ BA‖ with all edits before, [out]."""
    last = edits[-1]
    assert isinstance(last, Rescale)
    form = normal_form(weight, [*edits[:-1], Add(last.delta, last.kind)])
    with full_float32():
        matrix = weight.detach().reshape(len(weight), -1)
        magnitude = last.magnitude.to(matrix.device, form.delta.a.dtype)
        return gain(magnitude, _compute_norms(form, matrix, last.dim))


def _start_form(matrix: Tensor, dtype: torch.dtype) -> NormalForm:
    height, width = matrix.shape
    a, b = (torch.empty(shape, dtype=dtype, device=matrix.device) for shape in ((0, width), (height, 0)))
    # `a` is also the values of the replaced rows: there are no rows yet, so both are [0, q].
    return NormalForm(LowRank(a, b), torch.empty(0, dtype=torch.int64, device=matrix.device), a)


def _apply(form: NormalForm, edit: LayerEdit, matrix: Tensor) -> NormalForm:
    device, dtype = matrix.device, form.delta.a.dtype
    match edit:
        case Add(delta, _, groups):
            return replace(form, delta=concat([form.delta, delta.to(device, dtype)], groups), groups=groups)
        case Rescale(delta, magnitude, dim):
            form = replace(form, delta=concat([form.delta, delta.to(device, dtype)]))
            return _rescale(form, gain(magnitude.to(device, dtype), _compute_norms(form, matrix, dim)), dim)
        case ReplaceRows(rows, value):
            return _replace_rows(form, rows.to(device), value.to(device, dtype))


def _compute_norms(form: NormalForm, matrix: Tensor, dim: int) -> Tensor:
    """Return the norm of each output of W', computed a block of rows at a time."""
    parts = [output_norms(form.matrix(matrix, slice(row, row + ROWS)), dim) for row in range(0, len(matrix), ROWS)]
    # If outputs are columns, a block has only a piece of each: a column's norm is the norm of its pieces' norms.
    return torch.cat(parts) if dim == 0 else torch.linalg.vector_norm(torch.stack(parts), dim=0)


def _rescale(form: NormalForm, scale: Tensor, dim: int) -> NormalForm:
    a, b = form.delta.a, form.delta.b
    factor = _align(scale, dim)
    return replace(
        form,
        delta=LowRank(a, b * factor) if dim == 0 else LowRank(a * factor, b),
        values=form.values * (factor[form.rows] if dim == 0 else factor),
        # All Rescales of one matrix have the same `dim`, because the kind of its layer decides it.
        gain=scale if form.gain is None else form.gain * scale,
        dim=dim,
    )


def _replace_rows(form: NormalForm, rows: Tensor, values: Tensor) -> NormalForm:
    remaining = ~torch.isin(form.rows, rows)
    return replace(
        form,
        delta=LowRank(form.delta.a, form.delta.b.index_fill(0, rows, 0)),
        rows=torch.cat([form.rows[remaining], rows]),
        values=torch.cat([form.values[remaining], values]),
    )


def _align(vector: Tensor, dim: int) -> Tensor:
    """Return the vector as a column if outputs are rows, or as a row if outputs are columns."""
    return vector.unsqueeze(1 - dim)
