"""The forward of each kind of layer while every token takes a path of its own: y = Wx + b + Σ wᵢ Bᵢ(Aᵢx)."""

from typing import Any, Final
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional

from loratree_composer.base.layer_kind import kind_of
from loratree_composer.batch.mix import Mix, Task
from loratree_composer.batch.operations import Operation
from loratree_composer.batch.static import StaticRows
from loratree_composer.live.stacked_layers import StackedLayer, device_of, read_embed_scale
from loratree_registry.errors import Invalid


class MixedLayer(StackedLayer):
    """A layer in a mixed batch, which reads its own weight and the batch's plan at each call."""

    def __init__(self, name: str, layer: nn.Module, mix: Mix) -> None:
        self._tensors = layer._parameters
        weight = self._tensors["weight"]
        assert weight is not None
        super().__init__(name, weight.dtype, weight.device)
        self._mix, self.weight_name = mix, f"{name}.weight" if name else "weight"
        self.static: StaticRows | None = None  # what it adds instead of the plan's operations

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's y for its one argument x. Raises Invalid if the layer was cast or moved meanwhile."""
        self.called = True
        weight, bias = self._tensors["weight"], self._tensors.get("bias")
        assert weight is not None
        x = args[0] if args else next(iter(kwargs.values()))
        # Code that was compiled for a static batch must not ask for the work, which each batch has its own of.
        static, work = self.static, None if self.static is not None else self._mix.work
        if self._is_stopped or (static is None and work is None):
            return self._run_bare(x, weight, bias)
        if weight.dtype != self._dtype or weight.device != self._device:
            raise Invalid(
                f"{self.name} was {self._dtype} on {self._device} when the batch began and is now {weight.dtype} on "
                f"{weight.device}: begin another batch after the model is cast or moved"
            )
        if static is not None:
            return self._run_static(x, weight, bias, static)
        assert work is not None
        return self._run_mixed(x, weight, bias, work.task(self.weight_name, self._count_tokens(x), x.device))

    def _count_tokens(self, x: Tensor) -> int:
        raise NotImplementedError

    def _run_bare(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _run_mixed(self, x: Tensor, weight: Tensor, bias: Tensor | None, task: Task) -> Tensor:
        raise NotImplementedError

    def _run_static(self, x: Tensor, weight: Tensor, bias: Tensor | None, static: StaticRows) -> Tensor:
        raise NotImplementedError


class MixedLinear(MixedLayer):
    """A linear layer in a mixed batch: x [..., in], y [..., out]."""

    def __init__(self, name: str, layer: nn.Module, mix: Mix) -> None:
        super().__init__(name, layer, mix)
        self._transposed = kind_of(layer) == "Conv1D"

    def _count_tokens(self, x: Tensor) -> int:
        return x.numel() // x.shape[-1]

    def _run_bare(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight.mT if self._transposed else weight, bias)

    def _run_mixed(self, x: Tensor, weight: Tensor, bias: Tensor | None, task: Task) -> Tensor:
        waits = task.has_gain
        y = self._run_bare(x, weight, None if waits else bias)
        flat = x.reshape(-1, x.shape[-1])
        y = _apply(task.before, task, flat, y)
        if waits and bias is not None:
            y = y.add_(bias)
        return _apply(task.after, task, flat, y)

    def _run_static(self, x: Tensor, weight: Tensor, bias: Tensor | None, static: StaticRows) -> Tensor:
        inner = functional.linear(x.reshape(-1, x.shape[-1]), static.a)
        return static.add(inner, self._run_bare(x, weight, bias))


class MixedQuantised(MixedLayer):
    """A quantised linear layer in a mixed batch: its own forward, and products beside it, in `dtype`."""

    def __init__(self, name: str, layer: nn.Module, mix: Mix, dtype: torch.dtype, out: int) -> None:
        StackedLayer.__init__(self, name, dtype, device_of(layer))
        self._layer, self._forward, self._out = ref(layer), type(layer).forward, out
        self._mix, self.weight_name = mix, f"{name}.weight"
        self.static = None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's y for its one argument x. Raises Invalid if the layer was moved meanwhile."""
        self.called = True
        layer = self._layer()
        assert layer is not None
        y: Tensor = self._forward(layer, *args, **kwargs)
        work = self._mix.work
        if self._is_stopped or work is None:
            return y
        if device_of(layer) != self._device:
            raise Invalid(
                f"{self.name} was on {self._device} when the batch began and is now on {device_of(layer)}: begin "
                "another batch after the model is moved"
            )
        x = args[0] if args else next(iter(kwargs.values()))
        flat = x.reshape(-1, x.shape[-1]).to(self._dtype)
        task = work.task(self.weight_name, len(flat), x.device)
        if not task.before:
            return y
        delta = flat.new_zeros(len(flat), self._out)
        # Not in place: y may be a view that its quantiser's backward reads.
        return y + _apply(task.before, task, flat, delta).view(y.shape).to(y.dtype)


class MixedEmbedding(MixedLayer):
    """An embedding in a mixed batch: x [...] ids, y [..., dim]. A factor of its rows (embed_scale) scales the sum."""

    def __init__(self, name: str, layer: nn.Module, mix: Mix) -> None:
        super().__init__(name, layer, mix)
        self._how = {key: getattr(layer, key) for key in ("padding_idx", "scale_grad_by_freq", "sparse")}
        self._scale = read_embed_scale(layer, self._dtype)

    def _count_tokens(self, x: Tensor) -> int:
        return x.numel()

    def _run_bare(self, x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
        y = functional.embedding(x, weight, **self._how)
        return y if self._scale is None else y * self._scale

    def _run_mixed(self, x: Tensor, weight: Tensor, _: Tensor | None, task: Task) -> Tensor:
        y = functional.embedding(x, weight, **self._how)
        y = _apply(task.before, task, x.reshape(-1), y)
        return y if self._scale is None else y * self._scale

    def _run_static(self, x: Tensor, weight: Tensor, _: Tensor | None, static: StaticRows) -> Tensor:
        inner = functional.embedding(x.reshape(-1), static.a.mT)
        y = static.add(inner, functional.embedding(x, weight, **self._how))
        return y if self._scale is None else y * self._scale


def _apply(operations: list[Operation], task: Task, x: Tensor, y: Tensor) -> Tensor:
    """Apply operations to y [..., out], for x [tokens, in] or ids [tokens]; y was made by the caller."""
    if not operations:
        return y
    flat = y.view(-1, y.shape[-1])
    if task.indices is not None:
        there, back = task.indices
        x, flat = x.index_select(0, there), flat.index_select(0, there)
    for operation in operations:
        if x.ndim == 1:
            operation.apply_to_ids(x, flat)
        else:
            operation.apply(x, flat)
    return y if task.indices is None else flat.index_select(0, back).view(y.shape)


KINDS: Final[dict[str, type[MixedLayer]]] = {
    "Linear": MixedLinear,
    "Conv1D": MixedLinear,
    "Embedding": MixedEmbedding,
}
