"""y = Wx + B(Ax): deltas beside the base's layers, which stay untouched."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from loratree_composer.compiled import drop_compiled
from loratree_composer.edits import Add, joined
from loratree_composer.lowrank import LowRank
from loratree_composer.precision import full_float32
from loratree_composer.program import Program
from loratree_composer.targets import target_tensors
from loratree_registry.errors import Invalid


class Beside:
    """A forward hook that adds B(Ax) to a layer's output: x [..., in], a [rank, in], b [out, rank], y [..., out]."""

    def __init__(self, name: str, delta: LowRank) -> None:
        self.name, self.a, self.b = name, delta.a, delta.b
        self.called = False

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """Returns y + B(Ax) for the layer's output y and its one argument x. Raises Invalid once the layer is cast."""
        self.called = True
        weight = _weight(layer)
        if (weight.dtype, weight.device) != (self.a.dtype, self.a.device):
            raise Invalid(
                f"{self.name} was stacked in {self.a.dtype} on {self.a.device} and is now {weight.dtype} on "
                f"{weight.device}: call use() again after the model is cast or moved"
            )
        x = args[0] if args else next(iter(kwargs.values()))
        return output + linear(linear(x, self.a), self.b)


class Stack:
    """Deltas stacked onto a live module by forward hooks: one pair of products a layer, whatever the depth.

    The factors are held in the layer's own dtype, on its device; they stay there until `remove`. A layer whose weight
    is read past its forward (a functional call such as linear(x, layer.weight)) never runs its hook: its delta is left
    out, where a merge would have it in. After a forward pass, `unreached` names those. Compiled code is dropped.
    """

    def __init__(self, module: nn.Module, programs: Mapping[str, Program]) -> None:
        target_tensors(module, programs)
        deltas = {name.rpartition(".")[0]: _delta(program) for name, program in programs.items()}
        layers = {name: module.get_submodule(name) for name in deltas}
        beside = {name: Beside(name, _beside(layer, deltas[name])) for name, layer in layers.items()}
        self._beside = beside
        self._handles: list[RemovableHandle] = []
        for name, layer in layers.items():
            self._handles.append(layer.register_forward_hook(beside[name], with_kwargs=True))
        if layers:
            drop_compiled()

    @property
    def unreached(self) -> list[str]:
        """The layers whose forward has not run since they were stacked: after a pass, those it read past their forward.

        What such a pass computes lacks their deltas, as it does with PEFT's active adapter; merged weights have them.
        """
        return sorted(name for name, hook in self._beside.items() if not hook.called)

    def remove(self) -> None:
        """Takes every hook away; the module is as it was."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            drop_compiled()
        self._handles.clear()


def is_stacked(module: nn.Module) -> bool:
    """Tells whether any layer of `module` carries a stacked delta."""
    return any(isinstance(hook, Beside) for layer in module.modules() for hook in layer._forward_hooks.values())


def _delta(program: Program) -> LowRank:
    (add,) = joined(program.edits)
    assert isinstance(add, Add)
    return add.delta.transposed() if add.kind == "Conv1D" else add.delta


def _beside(layer: nn.Module, delta: LowRank) -> LowRank:
    weight = _weight(layer)
    with full_float32():
        return LowRank(*(factor.to(weight.device, weight.dtype, copy=True) for factor in (delta.a, delta.b)))


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
