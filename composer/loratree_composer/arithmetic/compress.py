"""The best approximation of a low-rank delta by one of fewer ranks, and how much of the delta it keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from typing import Final

import torch
from torch import Tensor

from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.precision import full_float32
from loratree_registry.core.chain import Limit
from loratree_registry.errors import Invalid, listed

EPSILON: Final = torch.finfo(torch.float64).eps
SMALLEST: Final = -2200  # an exponent below that of any product of two float64 values
FARTHEST: Final = -1000  # how much smaller a rank may be than the largest and still be told from one that is smaller


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """A truncated delta, the rank that it had, and the singular values of what it was cut from.

    `singular_values` is [rank_before], or [experts, rank_before], float64 and descending. `energy` is the share of
    ‖ΔW‖² that is kept, Σσ² of the kept ranks over Σσ² of all; 1 where there is nothing to keep.
    """

    delta: LowRank
    rank_before: int
    singular_values: Tensor
    energy: float

    @property
    def norm(self) -> float:
        """‖ΔW‖, the Frobenius norm of the delta before it was cut."""
        largest = self.singular_values.max()
        return float(largest * torch.linalg.vector_norm(self.singular_values / largest)) if largest > 0 else 0.0


def compressed(deltas: Mapping[str, LowRank], limit: Limit) -> dict[str, Compressed]:
    """Each module's delta within `limit`. Raises Invalid for those whose norm is not finite, all modules together."""
    infinite = sorted(name for name, d in deltas.items() if not isfinite(d.largest() * sqrt(prod(d.shape))))
    if infinite:
        raise Invalid(
            f"the scaled factors of {listed(infinite, limit=3)} hold values that are not finite, or have a product "
            "that is not, and cannot be compressed: take smaller level weights, or train with a smaller lora_alpha"
        )
    return {name: truncated(delta, limit) for name, delta in deltas.items()}


def truncated(delta: LowRank, limit: Limit) -> Compressed:
    """The nearest delta to B A in Frobenius norm of at most a rank, or of the least rank that keeps an energy.

    B A = U Σ Vᵀ is cut to its k largest σ: a = √σ Vᵀ [k, in], b = U √σ [out, k], in the dtype of the factors; where
    k is the rank that they have, they come back bit for bit. k is at least 1, and no more than the ranks that carry
    anything: σ ≤ 2⁻²⁶ √(‖AAᵀ‖ ‖BᵀB‖) counts as 0, with each row of A as long as its column of B. Experts share one k,
    the energy is over all of them. Each row of a is a sum of rows of A whose largest coefficient is positive.

    Nothing of the size of ΔW is made: with AAᵀ = S Sᵀ, the eigenvectors W of Sᵀ (BᵀB) S, which is [rank, rank], give
    V = Aᵀ S⁻ᵀ W and U Σ = B S W. All of it is in float64, in which a product of two float32 values is exact.
    """
    with full_float32():
        even = _as_it_is(delta) if delta.a.dtype == delta.b.dtype == torch.float32 else _even(_double(delta))
        values, right, left = _factored(even.delta)
        size = 2 * even.size.unsqueeze(-1)
        shares = _times(values, size - size.max())  # those of all experts to one measure
        rank = _rank(values, shares, delta.rank, limit)
        kept = delta if rank == delta.rank else _cut(even, values, right, left, rank, delta.a.dtype)
        return Compressed(kept, delta.rank, _times(values, size), 1 - float(_dropped(shares)[rank]))


@dataclass(frozen=True, slots=True, eq=False)
class _Even:
    """B A = 4^size B' A', the delta B' A' of values near 1, and `rows`, the powers of two that A's rows were taken by.

    size is [] or [experts], rows [rank] or [experts, rank].
    """

    delta: LowRank
    size: Tensor
    rows: Tensor


def _as_it_is(delta: LowRank) -> _Even:
    """A float32 delta in float64, which holds the squares of its values and their sums."""
    nothing = torch.zeros(delta.a.shape[:-1], dtype=torch.int64, device=delta.a.device)
    return _Even(_double(delta), nothing.sum(-1), nothing)


def _double(delta: LowRank) -> LowRank:
    return LowRank(delta.a.double(), delta.b.double())


def _even(delta: LowRank) -> _Even:
    """The delta by powers of two, so that no digit changes and no Gram matrix overflows.

    No value is above 2, and each row of A' is about as long as its column of B'.
    """
    of_a, of_b = (torch.frexp(factor).exponent.long() for factor in (delta.a.abs().amax(-1), delta.b.abs().amax(-2)))
    is_zero = (delta.a == 0).all(-1) | (delta.b == 0).all(-2)
    of_both = (of_a + of_b).masked_fill(is_zero, SMALLEST)
    size = (of_both.amax(-1) + 1) // 2
    left = (of_both - 2 * size.unsqueeze(-1)).clamp(min=FARTHEST)
    of_a, of_b = left // 2 - of_a, left - left // 2 - of_b
    return _Even(LowRank(_times(delta.a, of_a.unsqueeze(-1)), _times(delta.b, of_b.unsqueeze(-2))), size, of_a)


def _times(values: Tensor, exponent: Tensor) -> Tensor:
    """values · 2^exponent, rounded only where it leaves float64's normal numbers."""
    exponent = exponent.clamp(SMALLEST, -SMALLEST)  # in three factors, each of which float64 holds
    for part in (exponent // 3, (exponent + 1) // 3, (exponent + 2) // 3):
        values = values * ((part + 1023) << 52).view(torch.float64)  # torch.ldexp overflows beyond float32's range
    return values


def _factored(delta: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """σ [rank], and right [rank, rank], left [rank, rank] of Vᵀ = rightᵀ A and U Σ = B left."""
    gram_a, gram_b = delta.a @ delta.a.mT, delta.b.mT @ delta.b
    scale_a, scale_b = _balance(gram_a.diagonal(dim1=-2, dim2=-1), gram_b.diagonal(dim1=-2, dim2=-1))
    gram_a, gram_b = _scaled(gram_a, scale_a), _scaled(gram_b, scale_b)
    root, inverse = _root(gram_a)
    squares, w = torch.linalg.eigh(root.mT @ gram_b @ root)
    squares, w = squares.flip(-1), w.flip(-1)
    noise = EPSILON * torch.linalg.matrix_norm(gram_a) * torch.linalg.matrix_norm(gram_b)
    values = torch.where(squares > noise.unsqueeze(-1), squares, 0).sqrt()
    return values, scale_a.unsqueeze(-1) * (inverse @ w), scale_b.unsqueeze(-1) * (root @ w)


def _root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """S and S⁻ᵀ of S Sᵀ = gram, of the ranks that carry anything."""
    # As exact as the eigenvectors, which dependent rows need, and 0.3 ms for a rank of 120 where they take 2.7.
    root, failed = torch.linalg.cholesky_ex(gram)
    if not failed.any():
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
        return root, torch.linalg.solve_triangular(root.mT, identity, upper=True)
    lengths, vectors = torch.linalg.eigh(gram)
    roots = torch.where(lengths > EPSILON * lengths[..., -1:], lengths, 0).sqrt().unsqueeze(-2)
    return vectors * roots, vectors * _inverse(roots)


def _balance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """What makes each rank's row of A as long as its column of B, of their squared lengths; 0 where one of them is."""
    # Factors of very different lengths would lose the small ones' digits to the large ones'.
    ratio = torch.where((a > 0) & (b > 0), b / a, 0).pow(0.25)
    return ratio, _inverse(ratio)


def _scaled(gram: Tensor, scale: Tensor) -> Tensor:
    return scale.unsqueeze(-1) * gram * scale.unsqueeze(-2)


def _inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0)


def _rank(values: Tensor, shares: Tensor, rank: int, limit: Limit) -> int:
    """How many ranks to keep of `rank`."""
    if limit.energy is not None:
        return max(1, int((_dropped(shares) > 1 - limit.energy).sum()))
    assert limit.rank is not None
    return rank if rank <= limit.rank else max(1, min(limit.rank, int((values > 0).sum(-1).max())))


def _dropped(values: Tensor) -> Tensor:
    """The share of Σσ² that the first k of [rank] or [experts, rank] leave out, for k from 0 to rank."""
    squares = (values / values.max().clamp(min=torch.finfo(values.dtype).tiny)).square()
    squares = squares.reshape(-1, values.shape[-1]).sum(0)
    # From the smallest on, so that a small rest is not lost in a sum near 1.
    rest = torch.cat([squares.new_zeros(1), squares.flip(0).cumsum(0)]).flip(0)
    return rest / rest[0] if rest[0] > 0 else rest


def _cut(even: _Even, values: Tensor, right: Tensor, left: Tensor, rank: int, dtype: torch.dtype) -> LowRank:
    right, left = right[..., :rank], left[..., :rank]
    of_rows = _times(right, (even.rows - even.rows.amax(-1, keepdim=True)).unsqueeze(-1))
    farthest = right.gather(-2, of_rows.abs().argmax(-2, keepdim=True))
    half = torch.where(farthest < 0, -1.0, 1.0) * values[..., :rank].sqrt().unsqueeze(-2)
    a = (right * half).mT @ even.delta.a
    b = even.delta.b @ torch.where(half == 0, 0, left / half)
    size = even.size[..., None, None]
    return LowRank(_times(a, size).to(dtype), _times(b, size).to(dtype))
