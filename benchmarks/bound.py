"""The error of a merge beyond ½ ulp, in units of 2⁻²⁴ (|W| + |B||A|), by rank and sign: `python -m benchmarks.bound`.

The largest over three shapes and some seeds, in float32 on a CPU, against float64.
"""

import argparse

import torch

from loratree_composer.arithmetic.edits import Add
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.merge import merged
from tests.composer.reference_sums import UNIT, half_ulp, random_delta

RANKS = (64, 96, 128, 256, 512, 1024)
SHAPES = ((700, 513), (300, 1024), (513, 96))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    draws = [(*shape, seed) for shape in SHAPES for seed in range(parser.parse_args().seeds)]
    print(f"{'rank':<8}{'both signs':>12}{'one sign':>12}")
    for rank in RANKS:
        both, one = (max(_beyond(*draw, rank, one_sign=sign) for draw in draws) for sign in (False, True))
        print(f"{rank:<8}{both:>12.1f}{one:>12.1f}")


def _beyond(out: int, inp: int, seed: int, rank: int, *, one_sign: bool) -> float:
    """The largest error of W + B A over a weight [out, in] in float32."""
    weight = torch.randn(out, inp, generator=torch.Generator().manual_seed(seed))
    delta = random_delta(out, inp, rank, seed=seed + 1)
    if one_sign:
        weight, delta = weight.abs(), LowRank(delta.a.abs(), delta.b.abs())
    found = merged(weight, [Add(delta)], name="w")
    wide = LowRank(delta.a.double(), delta.b.double())
    error = (found.double() - weight.double() - wide.delta()).abs() - half_ulp(found)
    size = weight.double().abs() + LowRank(wide.a.abs(), wide.b.abs()).delta()
    return float((error / (UNIT * size)).max())


if __name__ == "__main__":
    main()
