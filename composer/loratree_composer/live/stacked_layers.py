"""y = G ⊙ (Wx) + B(Ax) + b: the forward of each kind of layer while a chain is stacked on it."""

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from loratree_composer.arithmetic.normal_form import NormalForm
from loratree_composer.base.layer_kind import kind_of
from loratree_registry.errors import Invalid


class StackedLayer:
    """A layer's forward with the chain's normal form beside its weight, which is read where it is and never written.

    It takes the place of the layer's own as an attribute of the instance: a forward hook would cost more at one token.
    It holds the layer's table of parameters and not the layer, so that no cycle keeps a dropped model in memory.
    """

    def __init__(self, name: str, layer: nn.Module, form: NormalForm) -> None:
        self.name, self.called, self._is_stopped = name, False, False
        self._tensors = layer._parameters
        weight = self._tensors["weight"]
        assert weight is not None
        self._dtype, self._device = weight.dtype, weight.device
        self._rank = form.delta.rank
        self._gain = None if form.gain is None else self._held(form.gain)
        self._values = self._held(form.values) if len(form.rows) else None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's y of its one argument x. Raises Invalid once the layer is cast or moved."""
        self.called = True
        weight, bias = self._tensors["weight"], self._tensors.get("bias")
        assert weight is not None
        if (weight.dtype != self._dtype or weight.device != self._device) and not self._is_stopped:
            raise Invalid(
                f"{self.name} was stacked in {self._dtype} on {self._device} and is now {weight.dtype} on "
                f"{weight.device}: call use() again after the model is cast or moved"
            )
        x = args[0] if args else next(iter(kwargs.values()))
        return self._bare(x, weight, bias) if self._is_stopped else self._forward(x, weight, bias)

    def stop(self) -> None:
        """Makes it the layer's own forward, for whoever has wrapped it in another and still calls it."""
        self._is_stopped = True

    def _bare(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _held(self, tensor: Tensor) -> Tensor:
        """A copy in the layer's dtype on its device, which `name` must be able to hold."""
        held = tensor.to(self._device, self._dtype, copy=True)
        if held.numel() and not torch.isfinite(torch.stack(torch.aminmax(held))).all():
            raise Invalid(
                f"{self.name} would be given values that are not finite in {self._dtype}: the adapter is broken or "
                "overflows"
            )
        return held


class StackedLinear(StackedLayer):
    """x [..., in], a [rank, in], b [out, rank], G [out], rows of outputs; y [..., out]."""

    def __init__(self, name: str, layer: nn.Module, form: NormalForm) -> None:
        super().__init__(name, layer, form)
        self._transposed = kind_of(layer) == "Conv1D"
        a, b = (form.delta.b.mT, form.delta.a.mT) if self._transposed else (form.delta.a, form.delta.b)
        self._a, self._b = self._held(a).contiguous(), _by_rank(self._held(b))
        self._rows = form.rows
        self._is_sum = self._gain is None and self._values is None

    def _bare(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight.mT if self._transposed else weight, bias)

    def _forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._transposed:
            weight = weight.mT
        if self._is_sum:
            y = functional.linear(x, weight, bias)
        else:
            y = self._changed(x, functional.linear(x, weight))
            if bias is not None:
                y = y.add_(bias)
        # y is this forward's own, and nothing that led to it reads it again.
        return y.add_(functional.linear(functional.linear(x, self._a), self._b)) if self._rank else y

    def _changed(self, x: Tensor, y: Tensor) -> Tensor:
        if self._gain is not None:
            y = y.mul_(self._gain)
        if self._values is not None:
            y = y.index_copy_(-1, self._rows, functional.linear(x, self._values))
        return y


class StackedEmbedding(StackedLayer):
    """x [...] ids, b [vocabulary, rank], a [rank, dim], G [dim], rows of the vocabulary; y [..., dim].

    Where the layer multiplies its rows by an embed_scale, all of it is multiplied.
    """

    def __init__(self, name: str, layer: nn.Module, form: NormalForm) -> None:
        super().__init__(name, layer, form)
        self._how = {key: getattr(layer, key) for key in ("padding_idx", "scale_grad_by_freq", "sparse")}
        self._scale = _embed_scale(layer, self._dtype)
        a = form.delta.a if self._scale is None else form.delta.a * self._scale
        self._b, self._a = self._held(form.delta.b), self._held(a).mT
        self._place = _places(form) if self._values is not None else None

    def _bare(self, x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
        y = functional.embedding(x, weight, **self._how)
        return y if self._scale is None else y * self._scale

    def _forward(self, x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
        y = functional.embedding(x, weight, **self._how)
        if self._gain is not None:
            y = y.mul_(self._gain)
        if self._place is not None and self._values is not None:
            place = self._place[x]
            y = torch.where((place < 0).unsqueeze(-1), y, self._values[place.clamp_min(0)])
        if self._scale is not None:
            y = y * self._scale
        return y.add_(functional.linear(functional.embedding(x, self._b), self._a)) if self._rank else y


class StackedConv(StackedLayer):
    """x [..., in, size…], a [rank, in, kernel…], b [out, rank/groups, 1…], G [out]; y [..., out, size…]."""

    def __init__(self, name: str, layer: nn.Module, form: NormalForm) -> None:
        super().__init__(name, layer, form)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        ones = (1,) * len(layer.kernel_size)
        self._a = self._held(form.delta.a).view(-1, layer.in_channels, *layer.kernel_size)
        self._b = self._held(form.delta.b).view(layer.out_channels, -1, *ones)
        self._gain = None if self._gain is None else self._gain.view(-1, *ones)
        self._dimensions, self._groups = len(ones), layer.groups
        self._how = {"stride": layer.stride, "padding": layer.padding}

    def _bare(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self._conv(x, weight, bias, groups=self._groups, **self._how)
        return y

    @property
    def _conv(self) -> Any:
        return (functional.conv1d, functional.conv2d, functional.conv3d)[self._dimensions - 1]

    def _forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self._conv
        if self._gain is None:
            y = conv(x, weight, bias, groups=self._groups, **self._how)
        else:
            y = conv(x, weight, groups=self._groups, **self._how).mul_(self._gain)
            if bias is not None:
                y = y.add_(bias.view(self._gain.shape))
        delta = conv(conv(x, self._a, **self._how), self._b, groups=self._groups)
        found: Tensor = y.add_(delta)
        return found


KINDS: Final[dict[str, type[StackedLayer]]] = {
    "Linear": StackedLinear,
    "Conv1D": StackedLinear,
    "Embedding": StackedEmbedding,
    "Conv1d": StackedConv,
    "Conv2d": StackedConv,
    "Conv3d": StackedConv,
}


def _by_rank(b: Tensor) -> Tensor:
    """b [out, rank], its columns contiguous where that pays.

    A CPU then takes 4.5 ms instead of 9.3 for one token's products in 84 layers in float32, but 3.5 times as long for
    64 tokens in float16.
    """
    return b.mT.contiguous().mT if b.dtype in (torch.float32, torch.float64) else b.contiguous()


def _embed_scale(layer: nn.Module, dtype: torch.dtype) -> Tensor | float | None:
    """What the layer multiplies its rows by, rounded as the layer itself does."""
    scale: Any = getattr(layer, "embed_scale", None)
    return scale.detach().to(dtype) if isinstance(scale, Tensor) else scale


def _places(form: NormalForm) -> Tensor:
    """Each id's place among the replaced rows, -1 for the others: [vocabulary] int64."""
    places = torch.full((len(form.delta.b),), -1, device=form.rows.device)
    places[form.rows] = torch.arange(len(form.rows), device=form.rows.device)
    return places
