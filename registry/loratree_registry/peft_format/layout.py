"""The shapes of A and B for each kind of layer, as PEFT makes them; standard library only."""

from dataclasses import dataclass
from math import prod
from typing import Final

CONVOLUTIONS: Final = ("Conv1d", "Conv2d", "Conv3d")
ATTENTION: Final = "MultiheadAttention"
OUT_PROJ: Final = "NonDynamicallyQuantizableLinear"  # the layer of an attention that is read and never called
TRANSPOSED_EXPERTS: Final = "Experts(transposed)"  # [experts, in, out]
EXPERTS: Final = ("Experts", TRANSPOSED_EXPERTS)

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What A, B, a magnitude and a bias look like for one tensor of the base; the fields are ModuleSpec's."""

    in_features: int
    out_features: int
    a: Shape
    b: Shape
    magnitude: Shape
    transposed: bool = False
    groups: int = 1
    experts: int = 1


def layer_layout(kind: str, weight: Shape, rank: int, a: Shape) -> Layout | None:
    """The layout of LoRA on a layer of `kind`; None for a weight of other dimensions. `a` gives a convolution's groups.

    PEFT's A of a convolution takes every input, whatever the groups; its B is grouped.
    """
    if kind in CONVOLUTIONS:
        return _convolution(weight, rank, a) if len(weight) == CONVOLUTIONS.index(kind) + 3 else None
    if len(weight) != 2:
        return None
    if kind in ("Conv1D", "Embedding"):
        return _matrix(weight[1], weight[0], rank, transposed=True)
    return _matrix(*weight, rank)


def parameter_layout(kind: str, weight: Shape, rank: int) -> Layout | None:
    """The layout of LoRA on a parameter by its name: a matrix, or experts; None for any other number of dimensions."""
    if len(weight) == 2:
        return _matrix(*weight, rank)
    if len(weight) != 3:
        return None
    transposed = kind == TRANSPOSED_EXPERTS
    experts, first, second = weight
    inputs, outputs = (first, second) if transposed else (second, first)
    return Layout(
        in_features=inputs,
        out_features=outputs,
        a=(experts * rank, inputs),
        b=(outputs, rank * experts),
        magnitude=(outputs,),
        transposed=transposed,
        experts=experts,
    )


def _matrix(outputs: int, inputs: int, rank: int, *, transposed: bool = False) -> Layout:
    return Layout(
        in_features=inputs,
        out_features=outputs,
        a=(rank, inputs),
        b=(outputs, rank),
        magnitude=(outputs,),
        transposed=transposed,
    )


def _convolution(weight: Shape, rank: int, a: Shape) -> Layout:
    outputs, per_group, *kernel = weight
    groups = _groups(per_group, a)
    ones = (1,) * len(kernel)
    return Layout(
        in_features=groups * per_group * prod(kernel),
        out_features=outputs,
        a=(rank, groups * per_group, *kernel),
        b=(outputs, rank // groups, *ones),
        magnitude=(1, outputs, *ones),
        groups=groups,
    )


def _groups(per_group: int, a: Shape) -> int:
    fits = len(a) > 1 and per_group > 0 and a[1] % per_group == 0
    return max(1, a[1] // per_group) if fits else 1
