"""A low-rank delta ΔW = B A, in pure tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """A low-rank delta ΔW = B A: a is [rank, in], b is [out, rank], and every scale is already in b.

    For experts a is [experts, rank, in] and b is [experts, out, rank]: one delta of this rank for each expert.
    """

    a: Tensor
    b: Tensor

    @classmethod
    def scaled(cls, a: Tensor, b: Tensor, scale: float) -> "LowRank":
        """Return scale · B A with the scale folded into b, both factors in float32; float64 factors stay float64."""
        return cls(_widen(a), _widen(b) if scale == 1 else _widen(b) * scale)

    @property
    def rank(self) -> int:
        """The number of rows of a, and of columns of b."""
        return self.a.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ΔW: [out, in] or [experts, out, in]."""
        return (*self.b.shape[:-1], self.a.shape[-1])

    def delta(self) -> Tensor:
        """Return ΔW = B A, [out, in]."""
        return self.b @ self.a

    def transposed(self) -> "LowRank":
        """Return ΔWᵀ = Aᵀ Bᵀ, for a layer that stores its weight as [in, out]."""
        return LowRank(self.b.mT, self.a.mT)

    def to(self, device: torch.device, dtype: torch.dtype) -> "LowRank":
        """Return the factors on `device` in `dtype`."""
        return LowRank(self.a.to(device, dtype), self.b.to(device, dtype))

    def largest(self) -> float:
        """Return a bound on every |value| of B A: rank · max|A| · max|B|."""
        return bound_of(self.a, self.b)


def concat(levels: Sequence[LowRank], groups: int = 1) -> LowRank:
    """Return Σ BᵢAᵢ as one product: a [Σr, in] stacks the rows of each A, b [out, Σr] the columns of each B.

    If `groups` is above 1, the rows of a are ordered by group, because b [out, Σr/groups] counts ranks within a group.
    Rounding depends on the order of the levels, so callers always pass root to leaf and always get the same bits.
    """
    # A level of rank 0 adds nothing, and cannot be split into groups.
    levels = [level for level in levels if level.rank] or levels[:1]
    if len(levels) == 1:
        return levels[0]
    b = torch.cat([level.b for level in levels], dim=-1)
    if groups == 1:
        return LowRank(torch.cat([level.a for level in levels], dim=-2), b)
    a = torch.cat([level.a.reshape(groups, -1, level.a.shape[-1]) for level in levels], dim=1)
    return LowRank(a.flatten(0, 1), b)


def bound_of(a: Tensor, b: Tensor) -> float:
    """Return a bound on every |value| of B A: rank · max|A| · max|B|, for a [rank, in] and b [out, rank]."""
    return a.shape[-2] * _find_largest(a) * _find_largest(b)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _find_largest(tensor: Tensor) -> float:
    # abs().max() would allocate a second tensor of this size; aminmax allocates none.
    if not tensor.numel():
        return 0.0
    low, high = torch.aminmax(tensor)
    return max(abs(float(low)), abs(float(high)))
