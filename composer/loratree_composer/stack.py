"""y = Wx + B(Ax): deltas beside the base's layers, which stay untouched."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from loratree_composer.lowrank import LowRank
from loratree_composer.precision import full_float32
from loratree_composer.targets import target_layers


class Beside:
    """A forward hook that adds B(Ax) to a layer's output: x [..., in], a [rank, in], b [out, rank], y [..., out]."""

    def __init__(self, delta: LowRank) -> None:
        self.a, self.b = delta.a, delta.b
        self.called = False

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """Returns y + B(Ax) for the layer's output y and its one argument x."""
        self.called = True
        x = args[0] if args else next(iter(kwargs.values()))
        return output + linear(linear(x, self.a), self.b)


class Stack:
    """Deltas stacked onto a live module by forward hooks: one pair of products a layer, whatever the depth.

    The factors are held in the layer's own dtype, on its device; they stay there until `remove`. A layer whose weight
    is read past its forward (a functional call) never runs its hook: after a forward pass, `unreached` names those.
    """

    def __init__(self, module: nn.Module, deltas: Mapping[str, LowRank]) -> None:
        layers = target_layers(module, deltas)
        beside = {name: Beside(_beside(layer, deltas[name])) for name, layer in layers.items()}
        self._beside = beside
        self._handles: list[RemovableHandle] = []
        for name, layer in layers.items():
            self._handles.append(layer.register_forward_hook(beside[name], with_kwargs=True))

    @property
    def unreached(self) -> list[str]:
        """The layers whose forward has not run since they were stacked."""
        return sorted(name for name, hook in self._beside.items() if not hook.called)

    def remove(self) -> None:
        """Takes every hook away; the module is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def is_stacked(module: nn.Module) -> bool:
    """Tells whether any layer of `module` carries a stacked delta."""
    return any(isinstance(hook, Beside) for layer in module.modules() for hook in layer._forward_hooks.values())


def _beside(layer: nn.Module, delta: LowRank) -> LowRank:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    with full_float32():
        return LowRank(*(factor.to(weight.device, weight.dtype, copy=True) for factor in (delta.a, delta.b)))
