"""A low-rank delta ΔW = B A: pure tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """ΔW = B A with a [rank, in], b [out, rank]; every scale is already in b.

    With one more dimension in front of both, [experts, …], it is that many deltas of one rank.
    """

    a: Tensor
    b: Tensor

    @classmethod
    def scaled(cls, a: Tensor, b: Tensor, scale: float) -> "LowRank":
        """scale · B A, with the scale folded into b in float32 (float64 factors stay float64); both come back so."""
        return cls(_wide(a), _wide(b) if scale == 1 else _wide(b) * scale)

    @property
    def rank(self) -> int:
        """How many rows a has, and columns b."""
        return self.a.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in], or [experts, out, in], the shape of ΔW."""
        return (*self.b.shape[:-1], self.a.shape[-1])

    def delta(self) -> Tensor:
        """ΔW = B A, [out, in]."""
        return self.b @ self.a

    def transposed(self) -> "LowRank":
        """ΔWᵀ = Aᵀ Bᵀ, for a layer that keeps its weight as [in, out]."""
        return LowRank(self.b.mT, self.a.mT)

    def to(self, device: torch.device, dtype: torch.dtype) -> "LowRank":
        """The same factors on `device` in `dtype`."""
        return LowRank(self.a.to(device, dtype), self.b.to(device, dtype))

    def largest(self) -> float:
        """A number that no |value| of B A exceeds: rank · max|A| · max|B|."""
        return self.rank * _largest(self.a) * _largest(self.b)


def concat(levels: Sequence[LowRank]) -> LowRank:
    """Σ BᵢAᵢ as one product: A stacked along rank, B along columns, in the order given.

    The order fixes the bits of what is made of it, so it is always root to leaf. a [Σr, in], b [out, Σr].
    """
    if len(levels) == 1:
        return levels[0]
    return LowRank(torch.cat([level.a for level in levels], dim=-2), torch.cat([level.b for level in levels], dim=-1))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _largest(tensor: Tensor) -> float:
    # aminmax makes no temporary of the tensor's size.
    low, high = torch.aminmax(tensor)
    return max(abs(float(low)), abs(float(high)))
