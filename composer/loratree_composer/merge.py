"""W' = W + Σ sᵢ BᵢAᵢ: one weight out of a base weight and its deltas, summed in float32 and rounded once."""

import torch
from torch import Tensor

from loratree_composer.lowrank import LowRank
from loratree_composer.precision import full_float32
from loratree_registry.errors import Invalid

# A 16-bit weight is summed by this many rows at a time, so that no float32 copy of it is ever whole. On two CPU cores
# this is also the fastest: a bfloat16 addmm is about 50 times slower than float32 on 256 rows.
ROWS = 256
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def merged(weight: Tensor, delta: LowRank, *, name: str) -> Tensor:
    """W' = W + B A, in W's dtype on W's device; W [out, in], a [rank, in], b [out, rank].

    |W' − (W + BA)| ≤ ½ ulp(W') + (rank + 2)·2⁻²⁴ (|W| + |B||A|), in whatever order the products are added, for ranks up
    to 4,000 and products that do not underflow. With factors of both signs it was measured within 8·2⁻²⁴, of one sign
    within 15·2⁻²⁴. Float64 weights are summed in float64: 2⁻⁵³. `name` is what the error calls the weight. Raises
    Invalid where a value is not finite, or a shape or dtype does not fit.
    """
    _check(weight, delta, name)
    wide = torch.promote_types(weight.dtype, torch.float32)
    with full_float32():
        delta = delta.to(weight.device, wide)
        if weight.dtype == wide:
            return _finite(torch.addmm(weight, delta.b, delta.a), name)
        result = torch.empty_like(weight, memory_format=torch.contiguous_format)
        for start in range(0, len(weight), ROWS):
            rows = slice(start, start + ROWS)
            result[rows] = torch.addmm(weight[rows].to(wide), delta.b[rows], delta.a)
        return _finite(result, name)


def _check(weight: Tensor, delta: LowRank, name: str) -> None:
    if weight.dtype not in _FLOATS:
        raise Invalid(f"{name} is {weight.dtype} and cannot be merged into: load the base in a floating-point dtype")
    if weight.is_meta:
        raise Invalid(f"{name} holds no values (it is on the meta device): load the whole base first")
    if tuple(weight.shape) != delta.shape:
        raise Invalid(
            f"{name} is {list(weight.shape)} and its delta {list(delta.shape)}: the adapter is of another base"
        )


def _finite(result: Tensor, name: str) -> Tensor:
    # aminmax passes a NaN on and makes no temporary the size of the weight.
    low, high = torch.aminmax(result)
    if not torch.isfinite(torch.stack((low, high))).all():
        raise Invalid(f"{name} would hold values that are not finite after merging: the adapter is broken or overflows")
    return result
