"""The forward of each kind of layer while a chain is stacked on it: y = G ⊙ (Wx) + B(Ax) + b."""

from typing import Any, Final
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn import functional

from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.merge import LINE
from loratree_composer.arithmetic.normal_form import NormalForm
from loratree_composer.base.layer_kind import kind_of
from loratree_registry.errors import Invalid


class StackedLayer:
    """A layer's forward that runs a chain's normal form beside the weight, and never writes the weight.

    The normal form is the whole chain as one gain, replaced rows and one B A: a deeper chain needs no more products.
    The object is the layer's own `forward` attribute, because a forward hook would cost more at one token. It has no
    strong reference to the layer, so that no cycle keeps a dropped model in memory. `dtype` is the dtype of what it
    holds, on `device`.
    """

    def __init__(self, name: str, dtype: torch.dtype, device: torch.device) -> None:
        self.name, self.called, self._is_stopped = name, False, False
        self._dtype, self._device = dtype, device

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's y for its one argument x."""
        raise NotImplementedError

    @property
    def depends_on_weight(self) -> bool:
        """True if what it holds was computed from the weight's values: a gain of DoRA, or rows beside it."""
        return False

    def is_of(self, layer: nn.Module) -> bool:
        """Return whether it was made for this layer, in the dtype and on the device that the weight has now."""
        raise NotImplementedError

    def start(self) -> None:
        """Act as the stacked layer again, after `stop`."""
        self._is_stopped, self.called = False, False

    @property
    def nbytes(self) -> int:
        """The size of its factors, gains and rows in bytes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

    def stop(self) -> None:
        """Act as the layer's own forward from now on, for callers that have wrapped this object and still call it."""
        self._is_stopped = True

    def _hold(self, tensor: Tensor) -> Tensor:
        """Return the tensor in the layer's dtype on its device. Raises Invalid if it is not finite there."""
        value = tensor.to(self._device, self._dtype)
        # Products are faster from where a line of the cache begins, and autograd keeps no tensor of inference mode.
        if value.data_ptr() % LINE or value.is_inference():
            value = value.clone()
        if value.numel() and not torch.isfinite(torch.stack(torch.aminmax(value))).all():
            raise Invalid(
                f"{self.name} would be given values that are not finite in {self._dtype}: the adapter is broken or "
                "overflows"
            )
        return value


class StackedQuantised(StackedLayer):
    """A stacked linear layer whose weight is quantised: y = layer(x) + B(Ax), x [..., in], a [rank, in], b [out, rank].

    `dtype` is the dtype that the factors take; x is cast to it for the products, as in PEFT.
    """

    def __init__(self, name: str, layer: nn.Module, delta: LowRank, dtype: torch.dtype) -> None:
        super().__init__(name, dtype, device_of(layer))
        self._layer, self._forward = ref(layer), type(layer).forward
        self._a, self._b = self._hold(delta.a).contiguous(), _order_by_rank(self._hold(delta.b))

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's y for its one argument x. Raises Invalid if the layer was moved after stacking."""
        self.called = True
        layer = self._layer()
        assert layer is not None
        y: Tensor = self._forward(layer, *args, **kwargs)
        if self._is_stopped:
            return y
        if device_of(layer) != self._device:
            raise Invalid(
                f"{self.name} was stacked on {self._device} and is now on {device_of(layer)}: call use() again after "
                "the model is moved"
            )
        x = args[0] if args else next(iter(kwargs.values()))
        delta = functional.linear(functional.linear(x.to(self._dtype), self._a), self._b)
        return y + delta.to(y.dtype)  # not in place: y may be a view that its quantiser's backward reads

    def is_of(self, layer: nn.Module) -> bool:
        """Return whether it was made for this layer, on the device that the layer has now."""
        return self._layer() is layer and device_of(layer) == self._device


def device_of(layer: nn.Module) -> torch.device:
    """Return the device of the layer's tensors. Torch's own quantised layers have none, and run on the CPU."""
    return next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))


class StackedWeight(StackedLayer):
    """A stacked layer that computes with the weight itself, which it reads at each call."""

    def __init__(self, name: str, layer: nn.Module, form: NormalForm) -> None:
        self._tensors = layer._parameters
        weight = self._tensors["weight"]
        assert weight is not None
        super().__init__(name, weight.dtype, weight.device)
        self._rank = form.delta.rank
        self._gain = None if form.gain is None else self._hold(form.gain)
        self._values = self._hold(form.values) if len(form.rows) else None

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the layer's y for its one argument x. Raises Invalid if the layer was cast or moved after stacking."""
        self.called = True
        weight, bias = self._tensors["weight"], self._tensors.get("bias")
        assert weight is not None
        if (weight.dtype != self._dtype or weight.device != self._device) and not self._is_stopped:
            raise Invalid(
                f"{self.name} was stacked in {self._dtype} on {self._device} and is now {weight.dtype} on "
                f"{weight.device}: call use() again after the model is cast or moved"
            )
        x = args[0] if args else next(iter(kwargs.values()))
        return self._run_bare(x, weight, bias) if self._is_stopped else self._run_stacked(x, weight, bias)

    @property
    def depends_on_weight(self) -> bool:
        """True if it holds a gain of DoRA, or rows beside it."""
        return self._gain is not None or self._values is not None

    def is_of(self, layer: nn.Module) -> bool:
        """Return whether it was made for this layer, in the dtype and on the device that the weight has now."""
        weight = layer._parameters.get("weight")
        is_same = self._tensors is layer._parameters and weight is not None
        return is_same and (weight.dtype, weight.device) == (self._dtype, self._device)  # type: ignore[union-attr]

    def _run_bare(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _run_stacked(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError


class StackedLinear(StackedWeight):
    """A stacked linear layer: x [..., in], a [rank, in], b [out, rank], G [out], rows of outputs; y [..., out]."""

    def __init__(self, name: str, layer: nn.Module, form: NormalForm) -> None:
        super().__init__(name, layer, form)
        self._transposed = kind_of(layer) == "Conv1D"
        a, b = (form.delta.b.mT, form.delta.a.mT) if self._transposed else (form.delta.a, form.delta.b)
        self._a, self._b = self._hold(a).contiguous(), _order_by_rank(self._hold(b))
        self._rows = form.rows
        self._is_sum = self._gain is None and self._values is None

    def _run_bare(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(x, weight.mT if self._transposed else weight, bias)

    def _run_stacked(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self._transposed:
            weight = weight.mT
        if self._is_sum:
            y = functional.linear(x, weight, bias)
        else:
            y = self._rescale_and_replace(x, functional.linear(x, weight))
            if bias is not None:
                y = y.add_(bias)
        # In place, because y was made here and no operation that made it reads it again.
        return y.add_(functional.linear(functional.linear(x, self._a), self._b)) if self._rank else y

    def _rescale_and_replace(self, x: Tensor, y: Tensor) -> Tensor:
        if self._gain is not None:
            y = y.mul_(self._gain)
        if self._values is not None:
            y = y.index_copy_(-1, self._rows, functional.linear(x, self._values))
        return y


class StackedEmbedding(StackedWeight):
    """A stacked embedding: x [...] ids, b [vocabulary, rank], a [rank, dim], G [dim], rows of ids; y [..., dim].

    If the layer multiplies its rows by an embed_scale, the whole sum is multiplied by it.
    """

    def __init__(self, name: str, layer: nn.Module, form: NormalForm) -> None:
        super().__init__(name, layer, form)
        self._how = {key: getattr(layer, key) for key in ("padding_idx", "scale_grad_by_freq", "sparse")}
        self._scale = read_embed_scale(layer, self._dtype)
        a = form.delta.a if self._scale is None else form.delta.a * self._scale
        self._b, self._a = self._hold(form.delta.b), self._hold(a).mT
        self._place = _index_rows(form) if self._values is not None else None

    def _run_bare(self, x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
        y = functional.embedding(x, weight, **self._how)
        return y if self._scale is None else y * self._scale

    def _run_stacked(self, x: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
        y = functional.embedding(x, weight, **self._how)
        if self._gain is not None:
            y = y.mul_(self._gain)
        if self._place is not None and self._values is not None:
            place = self._place[x]
            y = torch.where((place < 0).unsqueeze(-1), y, self._values[place.clamp_min(0)])
        if self._scale is not None:
            y = y * self._scale
        return y.add_(functional.linear(functional.embedding(x, self._b), self._a)) if self._rank else y


class StackedConv(StackedWeight):
    """A stacked convolution.

    x [..., in, size…], a [rank, in, kernel…], b [out, rank/groups, 1…], G [out]; y [..., out, size…].
    """

    def __init__(self, name: str, layer: nn.Module, form: NormalForm) -> None:
        super().__init__(name, layer, form)
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        ones = (1,) * len(layer.kernel_size)
        self._a = self._hold(form.delta.a).view(-1, layer.in_channels, *layer.kernel_size)
        self._b = self._hold(form.delta.b).view(layer.out_channels, -1, *ones)
        self._gain = None if self._gain is None else self._gain.view(-1, *ones)
        self._dimensions, self._groups = len(ones), layer.groups
        self._how = {"stride": layer.stride, "padding": layer.padding}

    def _run_bare(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = self._conv(x, weight, bias, groups=self._groups, **self._how)
        return y

    @property
    def _conv(self) -> Any:
        return (functional.conv1d, functional.conv2d, functional.conv3d)[self._dimensions - 1]

    def _run_stacked(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self._conv
        if self._gain is None:
            y = conv(x, weight, bias, groups=self._groups, **self._how)
        else:
            y = conv(x, weight, groups=self._groups, **self._how).mul_(self._gain)
            if bias is not None:
                y = y.add_(bias.view(self._gain.shape))
        delta = conv(conv(x, self._a, **self._how), self._b, groups=self._groups)
        result: Tensor = y.add_(delta)
        return result


KINDS: Final[dict[str, type[StackedWeight]]] = {
    "Linear": StackedLinear,
    "Conv1D": StackedLinear,
    "Embedding": StackedEmbedding,
    "Conv1d": StackedConv,
    "Conv2d": StackedConv,
    "Conv3d": StackedConv,
}


def _order_by_rank(b: Tensor) -> Tensor:
    """Return b [out, rank] with contiguous columns in float32 and float64, and with contiguous rows otherwise.

    With columns a CPU takes 4.5 ms instead of 9.3 for one token's products in 84 layers in float32, but 3.5 times as
    long for 64 tokens in float16.
    """
    return b.mT.contiguous().mT if b.dtype in (torch.float32, torch.float64) else b.contiguous()


def read_embed_scale(layer: nn.Module, dtype: torch.dtype) -> Tensor | float | None:
    """Return the factor of the layer's rows, rounded as the layer rounds it, or None if the layer has no factor."""
    scale: Any = getattr(layer, "embed_scale", None)
    return scale.detach().to(dtype) if isinstance(scale, Tensor) else scale


def _index_rows(form: NormalForm) -> Tensor:
    """Return the index of each id among the replaced rows, or -1 if the id is not replaced: [vocabulary] int64."""
    places = torch.full((len(form.delta.b),), -1, device=form.rows.device)
    places[form.rows] = torch.arange(len(form.rows), device=form.rows.device)
    return places
