"""Where PEFT keeps a LoRA on a tensor of the base, and in what shapes."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from loratree_composer.arithmetic.lowrank import LowRank
from loratree_registry.peft_format.base_index import BaseIndex, module_of
from loratree_registry.peft_format.layout import (
    ATTENTION,
    CONVOLUTIONS,
    EXPERTS,
    OUT_PROJ,
    Layout,
    layer_layout,
    parameter_layout,
)
from loratree_registry.peft_format.names import LAYER, PREFIX
from loratree_registry.peft_format.rules import COMPOSED


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPlace:
    """A LoRA on the tensor `parameter`, of `shape`, of a layer of `kind`.

    `target` is what the config names: the module or, of experts, the parameter. `layer` is the LoRA's name in the file.
    PEFT adds its delta `times` over.
    """

    parameter: str
    kind: str
    shape: tuple[int, ...]
    target: str
    layer: str
    groups: int = 1
    times: int = 1

    @property
    def by_parameter(self) -> bool:
        """Tells whether the config names the parameter and not its module."""
        return self.kind in EXPERTS

    @property
    def name(self) -> str:
        """The module, or the parameter of experts."""
        return self.parameter if self.by_parameter else module_of(self.parameter)

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of A and B in the file."""
        endings = ("embedding_A", "embedding_B") if self.kind == "Embedding" else ("A.weight", "B.weight")
        a, b = (f"{PREFIX}{self.layer}.lora_{ending}" for ending in endings)
        return a, b

    @property
    def bias(self) -> str:
        """The key of what lora_bias adds."""
        return f"{PREFIX}{self.layer}.lora_B.bias"

    def layout(self, rank: int) -> Layout:
        """The shapes of A and B, which are [rank, in] and [out, rank] in one way or another."""
        if self.by_parameter:
            found = parameter_layout(self.kind, self.shape, rank)
        else:
            found = layer_layout(self.kind, self.shape, rank, (rank, self.groups * self.shape[1]))
        assert found is not None
        return found

    def as_peft(self, delta: LowRank) -> LowRank:
        """A delta that is the way round of the stored tensor as PEFT's B A, row by row in memory."""
        found = delta.transposed() if self.layout(self.groups).transposed else delta
        return LowRank(found.a.contiguous(), found.b.contiguous())

    def tensors(self, delta: LowRank | None, rank: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """A and B of PEFT's delta by their keys, padded with zeros to `rank`; zeros alone for none.

        Each group of a convolution has ranks of its own: a [groups, rank/groups, in]. The expert's index is slowest in
        A, fastest in B.
        """
        layout, own = self.layout(rank), rank // self.groups
        a = torch.zeros(layout.experts, self.groups, own, layout.in_features, dtype=dtype)
        b = torch.zeros(layout.experts, layout.out_features, own, dtype=dtype)
        if delta is not None:
            used = delta.rank // self.groups
            a[:, :, :used] = delta.a.reshape(layout.experts, self.groups, used, -1)
            b[..., :used] = delta.b / self.times
        return dict(zip(self.keys, (a.reshape(layout.a), b.permute(1, 2, 0).reshape(layout.b)), strict=True))


def place(base: BaseIndex, parameter: str, *, depth: int = 0, inputs: int = 0) -> LoraPlace | None:
    """Where PEFT keeps a LoRA on `parameter`; None where it has none. `depth` is how deep it nests those of experts.

    `inputs` are a convolution's inputs times its kernel's size as A has them, which takes all whatever the groups.
    """
    found = base.parameters.get(parameter)
    if found is None:
        return None
    module, _, leaf = parameter.rpartition(".")
    kind, target, layer, times, groups = found.kind, module, module, 1, 1
    if kind in EXPERTS:
        target, layer = parameter, module + f".{LAYER}" * depth
    elif kind == OUT_PROJ and base.kinds.get(module_of(module)) == ATTENTION:
        kind, times, target = ATTENTION, 2, module_of(module)
        layer = f"{target}.{LAYER}.{module.rpartition('.')[2]}"
    elif kind not in COMPOSED or leaf != ("in_proj_weight" if kind == ATTENTION else "weight"):
        return None
    elif kind in CONVOLUTIONS:
        groups = max(1, inputs // prod(found.shape[1:]))
    return LoraPlace(
        parameter=parameter, kind=kind, shape=found.shape, target=target, layer=layer, groups=groups, times=times
    )
