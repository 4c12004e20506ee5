"""Tensors that a module shares between several names, given memory of their own while they differ."""

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from loratree_composer.arithmetic.program import Program
from loratree_composer.base.sharing import overlapping, sharers
from loratree_composer.live.fit import owner


class UntiedTensors:
    """Unties what a chain edits under one name and not, or otherwise, under another, and ties it again.

    The shared tensor itself is never written: its name is given a copy, and gets the very same tensor back.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._shared: dict[str, Tensor] = {}

    def give(self, tensors: Mapping[str, Tensor], programs: Mapping[str, Program]) -> dict[str, Tensor]:
        """The tensors to write to for `programs`: those given, and a copy for each name that shares its memory.

        What was untied before and is so no longer is tied again. A copy holds the shared tensor's value.
        """
        for name in [name for name in self._shared if name not in programs]:
            self._tie(name)
        found = dict(tensors)
        shared = {*sharers(self._module, set(tensors)), *overlapping(tensors), *self._originals_of_others(tensors)}
        for name in sorted(shared):
            self._shared[name] = found[name]
            found[name] = _copy(found[name])
            put(self._module, name, found[name])
        if shared:
            drop_compiled()
        return found

    def _originals_of_others(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """The names whose memory is what another name, untied before, stands for."""
        kept = {original.untyped_storage()._cdata for original in self._shared.values()}
        return [name for name, tensor in tensors.items() if tensor.untyped_storage()._cdata in kept]

    def original(self, name: str) -> Tensor | None:
        """The shared tensor that `name` stands for, None where it is not untied."""
        return self._shared.get(name)

    def take_back(self) -> None:
        """Gives every name its shared tensor back."""
        for name in list(self._shared):
            self._tie(name)

    def _tie(self, name: str) -> None:
        put_back(self._module, name, self._shared[name])
        del self._shared[name]
        drop_compiled()


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Makes `tensor` the parameter or buffer `name` of the module, in place of the object that is there."""
    held, leaf = owner(module, name), name.rpartition(".")[2]
    registered = held._parameters if leaf in held._parameters else held._buffers
    registered[leaf] = tensor  # type: ignore[assignment]


def put_back(module: nn.Module, name: str, original: Tensor) -> None:
    """Puts `original` in place of the tensor that stood for it, cast and moved as the module was in the meantime."""
    try:
        stood = getattr(owner(module, name), name.rpartition(".")[2])
    except AttributeError:
        return  # so is its place
    if (original.dtype, original.device) != (stood.dtype, stood.device):
        original.data = original.data.to(stood.device, stood.dtype)
    if isinstance(original, nn.Parameter):
        original.requires_grad_(stood.requires_grad)
    put(module, name, original)


def _copy(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False):
        value = tensor.detach().clone()
        return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def drop_compiled() -> None:
    """Drops what torch.compile holds in memory for this process: each compiled function is traced again when called.

    Dynamo notices a layer's other forward and compiles anew, but a function at most eight times (recompile_limit):
    of twelve stacks in turn the last four ran uncompiled, with a warning. Any function may have inlined a model's
    layers and none of them is known by the model, so there is nothing narrower to drop. Inductor's cache on disk stays
    and makes the next compilation of the same graph short. It takes microseconds where nothing was compiled.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
