"""The float64 reference that merged weights are held to, and random deltas to merge."""

from collections.abc import Mapping

import torch
from torch import Tensor

from loratree_composer.arithmetic.edits import Add
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.program import ChainStep, Program, programs

UNIT = 2.0**-24
MEASURED = 8


def random_delta(out: int, inp: int, rank: int, *, seed: int, std: float = 0.1) -> LowRank:
    """Random factors, a [rank, in], b [out, rank], in float32."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(rank, inp, generator=generator), torch.randn(out, rank, generator=generator)
    return LowRank(a * std, b * std)


def adding(deltas: Mapping[str, LowRank], kind: str = "Linear") -> dict[str, Program]:
    """The programs of one level that adds each delta, the way round that its module keeps its weight, by module."""
    return programs([ChainStep("", 1.0, {f"{name}.weight": (Add(delta, kind),) for name, delta in deltas.items()})])


def provable(levels: list[tuple[Tensor, Tensor, float]]) -> int:
    """The roundings that no order of summing exceeds: Σr + 2, and two more to fold a scale into B."""
    scales = {scale for _, _, scale in levels}
    return sum(len(a) for a, _, _ in levels) + (2 if scales <= {1.0} else 4)


def excess(
    result: Tensor, weight: Tensor, levels: list[tuple[Tensor, Tensor, float]], *, roundings: int = MEASURED
) -> float:
    """How far `result` is from W + Σ sBA in float64, over the bound of a merge: at most 1 is within.

    The bound is ½ ulp(result) + roundings·2⁻²⁴ (|W| + Σ |s| |B| |A|), by default the 8 that factors of both signs keep.
    """
    exact, size = weight.double(), weight.double().abs()
    for a, b, scale in levels:
        exact = exact + scale * (b.double() @ a.double())
        size = size + abs(scale) * (b.double().abs() @ a.double().abs())
    bound = half_ulp(result) + roundings * UNIT * size
    return float(((result.double() - exact).abs() / bound).max())


def half_ulp(tensor: Tensor) -> Tensor:
    """Half the distance from each |value| to the next larger one of its dtype, in float64."""
    _, exponent = torch.frexp(tensor.double())
    smallest = torch.finfo(tensor.dtype).smallest_normal
    exponent = torch.maximum(exponent, torch.frexp(torch.tensor(smallest, dtype=torch.float64))[1])
    return torch.ldexp(torch.full_like(tensor, torch.finfo(tensor.dtype).eps / 4, dtype=torch.float64), exponent)
