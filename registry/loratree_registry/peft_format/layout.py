"""The shapes of A and B for each kind of layer, as PEFT makes them; standard library only."""

from dataclasses import dataclass
from math import prod
from typing import Final

CONVOLUTIONS: Final = ("Conv1d", "Conv2d", "Conv3d")
ATTENTION: Final = "MultiheadAttention"
OUT_PROJ: Final = "NonDynamicallyQuantizableLinear"  # an attention reads this layer's weight and never calls it
TRANSPOSED_EXPERTS: Final = "Experts(transposed)"  # [experts, in, out]
EXPERTS: Final = ("Experts", TRANSPOSED_EXPERTS)

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The shapes of A, B and the magnitude for one tensor of the base. The other fields are ModuleSpec's."""

    in_features: int
    out_features: int
    a: Shape
    b: Shape
    magnitude: Shape
    transposed: bool = False
    groups: int = 1
    experts: int = 1


def layer_layout(kind: str, weight: Shape, rank: int, a: Shape) -> Layout | None:
    """Return the layout of LoRA on a layer of `kind`, or None if the weight has the wrong number of dimensions.

    `a` is A's shape. It gives a convolution's groups: PEFT's A takes the inputs of all groups, and its B is grouped.
    """
    if kind in CONVOLUTIONS:
        return _lay_out_convolution(weight, rank, a) if len(weight) == CONVOLUTIONS.index(kind) + 3 else None
    if len(weight) != 2:
        return None
    if kind in ("Conv1D", "Embedding"):
        return _lay_out_matrix(weight[1], weight[0], rank, transposed=True)
    return _lay_out_matrix(*weight, rank)


def parameter_layout(kind: str, weight: Shape, rank: int) -> Layout | None:
    """Return the layout of LoRA on a matrix or on experts, or None if the weight has another number of dimensions."""
    if len(weight) == 2:
        return _lay_out_matrix(*weight, rank)
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


def _lay_out_matrix(outputs: int, inputs: int, rank: int, *, transposed: bool = False) -> Layout:
    return Layout(
        in_features=inputs,
        out_features=outputs,
        a=(rank, inputs),
        b=(outputs, rank),
        magnitude=(outputs,),
        transposed=transposed,
    )


def _lay_out_convolution(weight: Shape, rank: int, a: Shape) -> Layout:
    outputs, per_group, *kernel = weight
    groups = _count_groups(per_group, a)
    ones = (1,) * len(kernel)
    return Layout(
        in_features=groups * per_group * prod(kernel),
        out_features=outputs,
        a=(rank, groups * per_group, *kernel),
        b=(outputs, rank // groups, *ones),
        magnitude=(1, outputs, *ones),
        groups=groups,
    )


def _count_groups(per_group: int, a: Shape) -> int:
    fits = len(a) > 1 and per_group > 0 and a[1] % per_group == 0
    return max(1, a[1] // per_group) if fits else 1
