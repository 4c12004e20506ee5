"""The merge W' = W + Σ sᵢ BᵢAᵢ: a base's tensor and a chain's edits, summed in float32 and rounded once."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import assert_never

import torch
from torch import Tensor

from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows, Rescale, Shift, check_shape
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.precision import full_float32
from loratree_registry.errors import Invalid

# A weight is summed this many rows at a time: the second product then finds the rows in the CPU's cache, and a 16-bit
# weight needs no whole float32 copy. Fewer rows cost more, because each product prepares A again.
ROWS = 1024
LINE = 64  # bytes
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# A smaller change cannot overflow a value: half an ulp of the maxima of float32 and bfloat16 is 1e31 and 7e35, of
# float16 16.
_SMALL = 1e30
_SMALL_HALF = 8.0


def merged(weight: Tensor, edits: Sequence[Edit], *, name: str) -> Tensor:
    """Return W', which is W with its edits applied in order, in W's dtype on W's device: W + B A for an Add.

    |W' − (W + ΣBA)| ≤ ½ ulp(W') + (Σrank + n + 2)·2⁻²⁴ (|W| + Σ|B||A|) for n Adds, in any order of summation, for
    ranks up to 4,000 and products that do not underflow. Measured: within 8·2⁻²⁴ for factors of both signs, within
    16·2⁻²⁴ for factors of one sign. Float64 weights are summed in float64: 2⁻⁵³. Errors call the weight `name`. Raises
    Invalid if a value is not finite, or if a shape or dtype does not fit.
    """
    result = torch.empty_like(weight, memory_format=torch.contiguous_format)
    merge_into(result, weight, edits, name=name)
    return result


def merge_into(target: Tensor, source: Tensor, edits: Sequence[Edit], *, name: str) -> None:
    """Write W' into `target`, rounded to its dtype: the W in `source` with its edits applied, as in `merged`.

    `source` may be `target` itself, on another device, or wider: for example a float32 sum of earlier edits. If Invalid
    is raised because the sum is not finite, `target` is already written.
    """
    check_mergeable(target, edits, name=name)
    with full_float32(), writing(target):
        if target.is_floating_point() and target.ndim:
            _sum_into(target.detach(), source, edits)
            if not is_surely_finite(edits, target.dtype):
                _check_finite(target, name)
        else:
            last = edits[-1]
            assert isinstance(last, Replace)
            target.copy_(last.value)


def _sum_into(target: Tensor, source: Tensor, edits: Sequence[Edit]) -> None:
    placed = [_move(edit, target) for edit in edits]
    for rows, accumulator in _yield_accumulators(target, edits):
        accumulator.copy_(source[rows])
        for edit in placed:
            _apply(edit, accumulator, rows.start)
        if accumulator.data_ptr() != target[rows].data_ptr():
            target[rows] = accumulator


def writing(target: Tensor) -> AbstractContextManager[object]:
    """Return the mode to write `target` in: a tensor made in inference mode can be written only in that mode."""
    return torch.inference_mode() if target.is_inference() else torch.no_grad()


def check_values(target: Tensor, edits: Sequence[Edit], *, name: str) -> None:
    """Raise Invalid if `target` has no values, or if deltas cannot be added to its dtype."""
    if target.is_meta:
        raise Invalid(f"{name} holds no values (it is on the meta device): load the whole base first")
    if target.dtype not in FLOATS and not all(isinstance(edit, Replace) for edit in edits):
        raise Invalid(f"{name} is {target.dtype} and takes no deltas: load the base in a floating-point dtype")


def check_mergeable(target: Tensor, edits: Sequence[Edit], *, name: str) -> None:
    """Raise Invalid if the edits cannot be summed into a tensor like `target`."""
    check_values(target, edits, name=name)
    for edit in edits:
        if isinstance(edit, Add) and edit.groups > 1:
            raise Invalid(
                f"{name} is of a convolution in {edit.groups} groups, and no weight can hold the adapter's delta, "
                "which crosses groups: stack or flatten the composition instead"
            )
        if problem := check_shape(tuple(target.shape), edit):
            raise Invalid(f"{name} {problem}: the adapter was made for another base")


def _yield_accumulators(target: Tensor, edits: Sequence[Edit]) -> Iterator[tuple[slice, Tensor]]:
    """Yield each block of the target's rows with float32 or wider memory of the same shape to sum it in.

    The memory is the target's own if the target is wide, contiguous and begins at a line of a CPU's cache, else one
    buffer that every block reuses. Tensors that are mapped from a file begin anywhere: products took 1.2 times as long.
    """
    wide = torch.promote_types(target.dtype, torch.float32)
    is_wide = target.dtype == wide and target.is_contiguous() and target.data_ptr() % LINE == 0
    step = _choose_step(target, edits)
    shape = (0 if is_wide else min(step, len(target)), *target.shape[1:])
    memory = torch.empty(shape, dtype=wide, device=target.device)
    for start in range(0, len(target), step):
        rows = slice(start, min(start + step, len(target)))
        yield rows, target[rows] if is_wide else memory[: rows.stop - start]


def _choose_step(target: Tensor, edits: Sequence[Edit]) -> int:
    """Return how many rows, or experts, of the target to sum at a time."""
    if any(isinstance(edit, Rescale) and edit.dim == 1 for edit in edits):
        return max(1, len(target))  # an output is a column, and its norm needs all rows
    if any(isinstance(edit, Add) and edit.delta.a.ndim == 3 for edit in edits):
        return max(1, ROWS // target.shape[1])
    return ROWS


def _move(edit: Edit, target: Tensor) -> Edit:
    """Return the edit with its tensors on the target's device and its factors in the dtype of the sum."""
    device, wide = target.device, torch.promote_types(target.dtype, torch.float32)
    match edit:
        case Add(delta, kind, groups):
            return Add(delta.to(device, wide), kind, groups)
        case Rescale(delta, magnitude, dim, kind):
            return Rescale(delta.to(device, wide), magnitude.to(device, wide), dim, kind)
        case ReplaceRows(rows, value):
            return ReplaceRows(rows.to(device), value.to(device))
        case Shift(value):
            return Shift(value.to(device))
        case Replace(value):
            return Replace(value.to(device))


def _apply(edit: Edit, rows: Tensor, start: int) -> None:
    """Apply one edit to the float32 `rows`, which begin at row `start` of a tensor."""
    here = slice(start, start + len(rows))
    match edit:
        case Add(delta):
            _add(rows, delta.a, delta.b, here)
        case Rescale(delta, magnitude, dim):
            matrix = rows.view(len(rows), -1)
            _add(rows, delta.a, delta.b, here)
            own = magnitude[here] if dim == 0 else magnitude
            matrix.mul_(gain(own, output_norms(matrix, dim)).unsqueeze(1 - dim))
        case Shift(value):
            rows.add_(value[here])
        case Replace(value):
            rows.copy_(value[here])
        case ReplaceRows(indices, value):
            inside = (indices >= start) & (indices < here.stop)
            rows[indices[inside] - start] = value[inside].to(rows.dtype)
        case _:
            assert_never(edit)


def _add(rows: Tensor, a: Tensor, b: Tensor, here: slice) -> None:
    """Add B A to `rows` by products of fixed shapes: the tensor's shape alone then decides the bits of the sum."""
    if a.ndim == 3:
        for expert, (expert_a, expert_b) in enumerate(zip(a[here], b[here], strict=True)):
            rows[expert].addmm_(expert_b, expert_a)
        return
    matrix, b = rows.view(len(rows), -1), b[here]
    for start in range(0, len(rows), ROWS):
        matrix[start : start + ROWS].addmm_(b[start : start + ROWS], a)


def output_norms(matrix: Tensor, dim: int) -> Tensor:
    """Return the norm of each output of a matrix; `dim` counts outputs. In float64 the squares do not overflow."""
    wide = torch.float64 if matrix.device.type != "mps" else matrix.dtype
    norms: Tensor = torch.linalg.vector_norm(matrix, dim=1 - dim, dtype=wide)
    return norms


def gain(magnitude: Tensor, norms: Tensor) -> Tensor:
    """Return DoRA's gain m / ‖W + BA‖, in the dtype of the magnitudes."""
    return (magnitude.to(norms.dtype) / norms).to(magnitude.dtype)


def check_deltas(edits: Sequence[Edit], dtype: torch.dtype, *, name: str) -> None:
    """Raise Invalid if the Adds among the edits have a sum that is not finite in `dtype`, without the base's values."""
    adds = [edit for edit in edits if isinstance(edit, Add)]
    if not adds or is_surely_finite(adds, dtype):
        return
    groups = adds[0].groups
    for group in range(groups):
        parts = [Add(_group_of(add.delta, group, groups)) for add in adds]
        merged(torch.zeros(parts[0].delta.shape, dtype=dtype), parts, name=name)


def check_held(value: Tensor, dtype: torch.dtype, *, name: str) -> None:
    """Raise Invalid if a value that becomes part of a tensor is not finite in the tensor's dtype."""
    if dtype.is_floating_point and value.is_floating_point():
        _check_finite(value.to(dtype), name)


def _group_of(delta: LowRank, group: int, groups: int) -> LowRank:
    """Return the product of one group of a convolution: a [rank/groups, in·kernel], b [out/groups, rank/groups]."""
    if groups == 1:
        return delta
    return LowRank(delta.a.chunk(groups, dim=-2)[group], delta.b.chunk(groups, dim=0)[group])


def is_surely_finite(edits: Sequence[Edit], dtype: torch.dtype, *, is_tame: bool = False) -> bool:
    """Return whether a finite weight stays finite for certain, because all edits are small deltas.

    Forms of a chain that do not write the sum ask this first: what it does not rule out, they sum to refuse what a
    merge refuses. With `is_tame`, small DoRA and replaced rows count too, if a caller checks their gains and values.
    """
    small = _SMALL_HALF if dtype == torch.float16 else _SMALL
    return all(_is_small(edit, small, dtype, is_tame=is_tame) for edit in edits)


def _is_small(edit: Edit, small: float, dtype: torch.dtype, *, is_tame: bool) -> bool:
    match edit:
        case Add():
            return edit.largest() < small
        case Rescale(delta, magnitude) if is_tame:  # an output's norm is its magnitude, so no value is above it
            return delta.largest() < _SMALL and float(magnitude.abs().max()) < torch.finfo(dtype).max / 2
        case ReplaceRows():
            return is_tame
        case _:
            return False


def _check_finite(result: Tensor, name: str) -> None:
    if not result.numel():
        return
    # aminmax propagates a NaN, and allocates no second tensor of this size.
    low, high = torch.aminmax(result)
    if not torch.isfinite(torch.stack((low, high))).all():
        raise Invalid(
            f"{name} would hold values that are not finite in {result.dtype} with this chain: a scale or a level "
            "weight is too large, or the adapter is broken"
        )
