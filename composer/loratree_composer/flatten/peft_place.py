"""The place of a LoRA on a tensor of the base in PEFT's file and config, and the shapes of its factors."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from loratree_composer.arithmetic.lowrank import LowRank
from loratree_registry.peft_format.layout import (
    ATTENTION,
    CONVOLUTIONS,
    OUT_PROJ,
    Layout,
    layer_layout,
    parameter_layout,
)
from loratree_registry.peft_format.names import LAYER, PREFIX, BaseIndex, module_of
from loratree_registry.peft_format.rules import is_by_parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraPlace:
    """A LoRA on the tensor `parameter`, of `shape`, of a layer of `kind`.

    `target` is the name in the config: the module's or, for experts, the parameter's. `layer` is the LoRA's name in
    the file. PEFT adds the delta `times` times.
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
        """True if the config names the parameter and not its module."""
        return is_by_parameter(self.kind)

    @property
    def name(self) -> str:
        """The module's name, or for experts the parameter's."""
        return self.parameter if self.by_parameter else module_of(self.parameter)

    @property
    def keys(self) -> tuple[str, str]:
        """The keys of A and B in the file."""
        endings = ("embedding_A", "embedding_B") if self.kind == "Embedding" else ("A.weight", "B.weight")
        a, b = (f"{PREFIX}{self.layer}.lora_{ending}" for ending in endings)
        return a, b

    @property
    def bias(self) -> str:
        """The key of the bias that lora_bias adds."""
        return f"{PREFIX}{self.layer}.lora_B.bias"

    def layout(self, rank: int) -> Layout:
        """Return the layout of A [rank, in] and B [out, rank] for this kind of layer."""
        if self.by_parameter:
            shapes = parameter_layout(self.kind, self.shape, rank)
        else:
            shapes = layer_layout(self.kind, self.shape, rank, (rank, self.groups * self.shape[1]))
        assert shapes is not None
        return shapes

    def as_peft(self, delta: LowRank) -> LowRank:
        """Return a delta in the stored tensor's orientation as PEFT's B A, with contiguous rows."""
        oriented = delta.transposed() if self.layout(self.groups).transposed else delta
        return LowRank(oriented.a.contiguous(), oriented.b.contiguous())

    def tensors(self, delta: LowRank | None, rank: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return A and B of PEFT's delta by their keys, padded with zeros to `rank`; all zeros if there is no delta.

        Each group of a convolution has its own ranks: a [groups, rank/groups, in]. The expert's index varies slowest in
        A and fastest in B.
        """
        layout, own = self.layout(rank), rank // self.groups
        a = torch.zeros(layout.experts, self.groups, own, layout.in_features, dtype=dtype)
        b = torch.zeros(layout.experts, layout.out_features, own, dtype=dtype)
        if delta is not None:
            used = delta.rank // self.groups
            a[:, :, :used] = delta.a.reshape(layout.experts, self.groups, used, -1)
            b[..., :used] = delta.b / self.times
        # At rank 1, the permuted b is only a view, and safetensors writes contiguous tensors alone.
        return dict(
            zip(self.keys, (a.reshape(layout.a), b.permute(1, 2, 0).reshape(layout.b).contiguous()), strict=True)
        )


def find_place(base: BaseIndex, parameter: str, *, depth: int = 0, inputs: int = 0) -> LoraPlace | None:
    """Return the place of a LoRA on `parameter`, or None if PEFT has none.

    A LoRA by parameter has `depth` LoRAs on other parameters of its module around it. `inputs` is the width of a
    convolution's A: all its inputs times its kernel's size, not divided by its groups.
    """
    tensor = base.parameters.get(parameter)
    if tensor is None:
        return None
    module, _, leaf = parameter.rpartition(".")
    kind, target, layer, times, groups = tensor.kind, module, module, 1, 1
    if kind == OUT_PROJ and base.kinds.get(module_of(module)) == ATTENTION:
        kind, times, target = ATTENTION, 2, module_of(module)
        layer = f"{target}.{LAYER}.{module.rpartition('.')[2]}"
    elif kind == OUT_PROJ:
        return None
    elif is_by_parameter(kind):
        if parameter_layout(kind, tensor.shape, 1) is None:
            return None
        target, layer = parameter, module + f".{LAYER}" * depth
    elif leaf != ("in_proj_weight" if kind == ATTENTION else "weight"):
        return None
    elif kind in CONVOLUTIONS:
        groups = max(1, inputs // prod(tensor.shape[1:]))
    return LoraPlace(
        parameter=parameter, kind=kind, shape=tensor.shape, target=target, layer=layer, groups=groups, times=times
    )
