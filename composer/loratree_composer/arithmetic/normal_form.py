"""W' = R(g ⊙ W) + B A: what a chain makes of one matrix beside which it is stacked, whatever its depth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loratree_composer.arithmetic.edits import Add, Edit, ReplaceRows, Rescale
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.merge import ROWS, gain, output_norms
from loratree_composer.arithmetic.precision import full_float32

LayerEdit = Add | Rescale | ReplaceRows  # the edits that have this form


@dataclass(frozen=True, slots=True, eq=False)
class NormalForm:
    """A matrix W [p, q], the way round that it is stored, with a gain for each output, some rows replaced, and B A.

    delta has a [r, q] and b [p, r/groups]. gain is [p], or [q] where `dim` is 1, the dimension that counts outputs;
    None is 1. R puts values [n, q] in place of the rows [n]. All are float32 or wider, on W's device.
    """

    delta: LowRank
    rows: Tensor
    values: Tensor
    gain: Tensor | None = None
    dim: int = 0
    groups: int = 1

    def matrix(self, weight: Tensor, here: slice) -> Tensor:
        """Some rows of W', in float32 or wider."""
        found = weight[here].to(self.delta.a.dtype, copy=True)
        if self.gain is not None:
            found.mul_(_along(self.gain, self.dim)[here] if self.dim == 0 else self.gain)
        inside = (self.rows >= here.start) & (self.rows < here.stop)
        found[self.rows[inside] - here.start] = self.values[inside]
        return found.addmm_(self.delta.b[here], self.delta.a)


def normal_form(weight: Tensor, edits: Sequence[Edit]) -> NormalForm:
    """The normal form of edits of `weight`, in order: Adds, Rescales and ReplaceRows.

    A Rescale reads the weight once, some rows at a time: its gain m/‖W'‖ is of the sum so far, and goes into what lies
    above it. A ReplaceRows takes its rows out of B. A convolution's weight is taken as [out, in·kernel].
    """
    matrix = weight.detach().reshape(len(weight), -1)
    wide = torch.promote_types(weight.dtype, torch.float32)
    with full_float32():
        form = _bare(matrix, wide)
        for edit in edits:
            assert isinstance(edit, LayerEdit)
            form = _after(form, edit, matrix)
    return form


def _bare(matrix: Tensor, dtype: torch.dtype) -> NormalForm:
    height, width = matrix.shape
    a, b = (torch.empty(shape, dtype=dtype, device=matrix.device) for shape in ((0, width), (height, 0)))
    return NormalForm(LowRank(a, b), torch.empty(0, dtype=torch.int64, device=matrix.device), a)


def _after(form: NormalForm, edit: LayerEdit, matrix: Tensor) -> NormalForm:
    device, dtype = matrix.device, form.delta.a.dtype
    match edit:
        case Add(delta, _, groups):
            return replace(form, delta=_joined(form.delta, delta.to(device, dtype), groups), groups=groups)
        case Rescale(delta, magnitude, dim):
            form = replace(form, delta=_joined(form.delta, delta.to(device, dtype), 1))
            return _rescaled(form, gain(magnitude.to(device, dtype), _norms(form, matrix, dim)), dim)
        case ReplaceRows(rows, value):
            return _replaced(form, rows.to(device), value.to(device, dtype))


def _joined(above: LowRank, below: LowRank, groups: int) -> LowRank:
    """Both as one product; of a grouped convolution group by group, as b counts its columns from each group's first."""
    if not above.rank:
        return below
    a = torch.cat([delta.a.reshape(groups, -1, delta.a.shape[1]) for delta in (above, below)], dim=1)
    return LowRank(a.reshape(-1, a.shape[2]), torch.cat([above.b, below.b], dim=1))


def _norms(form: NormalForm, matrix: Tensor, dim: int) -> Tensor:
    """The norm of each output of W', some rows at a time."""
    parts = [
        output_norms(form.matrix(matrix, slice(start, start + ROWS)), dim) for start in range(0, len(matrix), ROWS)
    ]
    return torch.cat(parts) if dim == 0 else torch.linalg.vector_norm(torch.stack(parts), dim=0)


def _rescaled(form: NormalForm, scale: Tensor, dim: int) -> NormalForm:
    a, b = form.delta.a, form.delta.b
    factor = _along(scale, dim)
    return replace(
        form,
        delta=LowRank(a, b * factor) if dim == 0 else LowRank(a * factor, b),
        values=form.values * (factor[form.rows] if dim == 0 else factor),
        gain=scale if form.gain is None else form.gain * scale,
        dim=dim,
    )


def _replaced(form: NormalForm, rows: Tensor, values: Tensor) -> NormalForm:
    kept = ~torch.isin(form.rows, rows)
    return replace(
        form,
        delta=LowRank(form.delta.a, form.delta.b.index_fill(0, rows, 0)),
        rows=torch.cat([form.rows[kept], rows]),
        values=torch.cat([form.values[kept], values]),
    )


def _along(vector: Tensor, dim: int) -> Tensor:
    """The vector as a column for outputs that are rows, as a row for outputs that are columns."""
    return vector.unsqueeze(1 - dim)
