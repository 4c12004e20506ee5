"""Compression: the best approximation of a low-rank delta at a lower rank, and the share of the delta that remains."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from typing import Final

import torch
from torch import Tensor

from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.precision import full_float32
from loratree_registry.core.chain import Limit
from loratree_registry.core.progress import Tick, uncounted
from loratree_registry.errors import Invalid, listed

EPSILON: Final = torch.finfo(torch.float64).eps
SMALLEST: Final = -2200  # less than the exponent of any product of two float64 values
FARTHEST: Final = -1000  # an exponent: ranks smaller than the largest by more than this count as equally small


@dataclass(frozen=True, slots=True, eq=False)
class Compressed:
    """A truncated delta, with the rank and the singular values of the delta before truncation.

    `singular_values` is [rank_before], or [experts, rank_before], float64 and descending. `energy` is the share of
    ‖ΔW‖² that remains: Σσ² of the remaining ranks over Σσ² of all ranks, or 1 if ΔW is zero.
    """

    delta: LowRank
    rank_before: int
    singular_values: Tensor
    energy: float

    @property
    def norm(self) -> float:
        """The Frobenius norm ‖ΔW‖ of the delta before truncation."""
        largest = self.singular_values.max()
        return float(largest * torch.linalg.vector_norm(self.singular_values / largest)) if largest > 0 else 0.0


def compressed(deltas: Mapping[str, LowRank], limit: Limit, *, on_done: Tick = uncounted) -> dict[str, Compressed]:
    """Truncate each module's delta to `limit`; call `on_done(1)` after each, in its thread.

    Raises Invalid, naming every module with a norm that is not finite.
    """
    infinite = sorted(name for name, d in deltas.items() if not isfinite(d.largest() * sqrt(prod(d.shape))))
    if infinite:
        raise Invalid(
            f"the scaled factors of {listed(infinite, limit=3)} hold values that are not finite, or have a product "
            "that is not, and cannot be compressed: take smaller level weights, or train with a smaller lora_alpha"
        )

    def cut(delta: LowRank) -> Compressed:
        done = truncated(delta, limit)
        on_done(1)
        return done

    with full_float32():
        return dict(zip(deltas, _map_modules(cut, list(deltas.values())), strict=True))


def _map_modules(function: Callable[[LowRank], Compressed], deltas: Sequence[LowRank]) -> list[Compressed]:
    """Return the function of each delta; on a CPU, as many at once as torch has threads, each on one thread.

    A module's matrices are too small for several threads: seven modules took 143 ms one by one on two threads each, 62
    on one thread, and 35 two at once.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(deltas) == 1 or any(delta.a.device.type != "cpu" for delta in deltas):
        return [function(delta) for delta in deltas]
    torch.set_num_threads(1)  # a new thread begins with this number
    try:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(function, deltas))
    finally:
        torch.set_num_threads(threads)


def truncated(delta: LowRank, limit: Limit) -> Compressed:
    """Truncate B A to the nearest delta in Frobenius norm within `limit`, which is a highest rank or a least energy.

    B A = U Σ Vᵀ is cut to its k largest σ: a = √σ Vᵀ [k, in], b = U √σ [out, k], in the dtype of the factors. If k is
    the rank of the factors, they are returned unchanged. k is at least 1 and at most the number of σ that are not 0;
    σ ≤ 2⁻²⁶ √(‖AAᵀ‖ ‖BᵀB‖) counts as 0, after each row of A is scaled to the length of its column of B. Experts share
    one k, and the energy is over all experts. Each row of a is a sum of rows of A with a positive largest coefficient.

    No matrix of the size of ΔW is made: with AAᵀ = S Sᵀ, the eigenvectors W of Sᵀ (BᵀB) S, which is [rank, rank], give
    V = Aᵀ S⁻ᵀ W and U Σ = B S W. The computation is in float64, where a product of two float32 values is exact.
    """
    with full_float32():
        normal = _widen(delta) if delta.a.dtype == delta.b.dtype == torch.float32 else _normalize(_to_double(delta))
        values, right, left = _factorize(normal.delta)
        size = 2 * normal.size.unsqueeze(-1)
        shares = _multiply(values, size - size.max())  # in one unit for all experts
        rank = _choose_rank(values, shares, delta.rank, limit)
        result = delta if rank == delta.rank else _cut(normal, values, right, left, rank, delta.a.dtype)
        return Compressed(result, delta.rank, _multiply(values, size), 1 - float(_compute_lost_shares(shares)[rank]))


@dataclass(frozen=True, slots=True, eq=False)
class _Normal:
    """A delta with values near 1: B A = 4^size B' A'. `rows` are the powers of two that scaled the rows of A.

    size is [] or [experts], rows [rank] or [experts, rank].
    """

    delta: LowRank
    size: Tensor
    rows: Tensor


def _widen(delta: LowRank) -> _Normal:
    """Return a float32 delta in float64, unscaled: float64 holds the squares of its values, and their sums."""
    nothing = torch.zeros(delta.a.shape[:-1], dtype=torch.int64, device=delta.a.device)
    return _Normal(_to_double(delta), nothing.sum(-1), nothing)


def _to_double(delta: LowRank) -> LowRank:
    return LowRank(delta.a.double(), delta.b.double())


def _normalize(delta: LowRank) -> _Normal:
    """Scale a float64 delta by powers of two, so that no digit changes and no Gram matrix overflows.

    No value of the result is above 2, and each row of A' is about as long as its column of B'.
    """
    of_a, of_b = (torch.frexp(factor).exponent.long() for factor in (delta.a.abs().amax(-1), delta.b.abs().amax(-2)))
    is_zero = (delta.a == 0).all(-1) | (delta.b == 0).all(-2)
    of_both = (of_a + of_b).masked_fill(is_zero, SMALLEST)
    size = (of_both.amax(-1) + 1) // 2
    relative = (of_both - 2 * size.unsqueeze(-1)).clamp(min=FARTHEST)
    of_a, of_b = relative // 2 - of_a, relative - relative // 2 - of_b
    return _Normal(LowRank(_multiply(delta.a, of_a.unsqueeze(-1)), _multiply(delta.b, of_b.unsqueeze(-2))), size, of_a)


def _multiply(values: Tensor, exponent: Tensor) -> Tensor:
    """Return values · 2^exponent, rounded only if the result is outside float64's normal numbers."""
    if not exponent.any():
        return values
    exponent = exponent.clamp(SMALLEST, -SMALLEST)  # float64 holds each of three factors, not their product
    for part in (exponent // 3, (exponent + 1) // 3, (exponent + 2) // 3):
        values = values * ((part + 1023) << 52).view(torch.float64)  # torch.ldexp overflows beyond float32's range
    return values


def _factorize(delta: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """Return σ [rank], right [rank, rank] and left [rank, rank], with Vᵀ = rightᵀ A and U Σ = B left."""
    gram_a, gram_b = delta.a @ delta.a.mT, delta.b.mT @ delta.b
    scale_a, scale_b = _balance(gram_a.diagonal(dim1=-2, dim2=-1), gram_b.diagonal(dim1=-2, dim2=-1))
    gram_a, gram_b = _scale_gram(gram_a, scale_a), _scale_gram(gram_b, scale_b)
    root, inverse = _find_root(gram_a)
    squares, w = torch.linalg.eigh(root.mT @ gram_b @ root)
    squares, w = squares.flip(-1), w.flip(-1)
    noise = EPSILON * torch.linalg.matrix_norm(gram_a) * torch.linalg.matrix_norm(gram_b)
    values = torch.where(squares > noise.unsqueeze(-1), squares, 0).sqrt()
    return values, scale_a.unsqueeze(-1) * (inverse @ w), scale_b.unsqueeze(-1) * (root @ w)


def _find_root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return S and S⁻ᵀ with S Sᵀ = gram, and zeros for ranks that add nothing."""
    # Cholesky is as exact as eigenvectors and takes 0.3 ms at rank 120, not 2.7 ms, but fails on dependent rows.
    root, failed = torch.linalg.cholesky_ex(gram)
    if not failed.any():
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device).expand_as(gram)
        return root, torch.linalg.solve_triangular(root.mT, identity, upper=True)
    lengths, vectors = torch.linalg.eigh(gram)
    roots = torch.where(lengths > EPSILON * lengths[..., -1:], lengths, 0).sqrt().unsqueeze(-2)
    return vectors * roots, vectors * _invert(roots)


def _balance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return scales for A's rows and B's columns that make the squared lengths `a` and `b` equal; 0 if one is 0."""
    # If lengths differ much, adding the long factors would round away the digits of the short factors.
    ratio = torch.where((a > 0) & (b > 0), b / a, 0).pow(0.25)
    return ratio, _invert(ratio)


def _scale_gram(gram: Tensor, scale: Tensor) -> Tensor:
    return scale.unsqueeze(-1) * gram * scale.unsqueeze(-2)


def _invert(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0)


def _choose_rank(values: Tensor, shares: Tensor, rank: int, limit: Limit) -> int:
    """Return how many of `rank` ranks to keep."""
    if limit.energy is not None:
        return max(1, int((_compute_lost_shares(shares) > 1 - limit.energy).sum()))
    assert limit.rank is not None
    return rank if rank <= limit.rank else max(1, min(limit.rank, int((values > 0).sum(-1).max())))


def _compute_lost_shares(values: Tensor) -> Tensor:
    """Return the share of Σσ² outside the first k σ, for k from 0 to rank; `values` is [rank] or [experts, rank]."""
    squares = (values / values.max().clamp(min=torch.finfo(values.dtype).tiny)).square()
    squares = squares.reshape(-1, values.shape[-1]).sum(0)
    # Sum from the smallest up, so that a small remainder is not rounded away in a sum near 1.
    rest = torch.cat([squares.new_zeros(1), squares.flip(0).cumsum(0)]).flip(0)
    return rest / rest[0] if rest[0] > 0 else rest


def _cut(normal: _Normal, values: Tensor, right: Tensor, left: Tensor, rank: int, dtype: torch.dtype) -> LowRank:
    right, left = right[..., :rank], left[..., :rank]
    of_rows = _multiply(right, (normal.rows - normal.rows.amax(-1, keepdim=True)).unsqueeze(-1))
    farthest = right.gather(-2, of_rows.abs().argmax(-2, keepdim=True))
    half = torch.where(farthest < 0, -1.0, 1.0) * values[..., :rank].sqrt().unsqueeze(-2)
    a = (right * half).mT @ normal.delta.a
    b = normal.delta.b @ torch.where(half == 0, 0, left / half)
    size = normal.size[..., None, None]
    return LowRank(_multiply(a, size).to(dtype), _multiply(b, size).to(dtype))
