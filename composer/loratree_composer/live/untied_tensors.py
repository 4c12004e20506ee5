"""Tensors that several names of a module share, with separate memory for a name while its value differs."""

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from loratree_composer.arithmetic.program import Program
from loratree_composer.base.sharing import overlapping, sharers, tensors
from loratree_composer.live.fit import owner


class UntiedTensors:
    """The names of a module that are untied from a shared tensor because a chain edits them.

    The shared tensor is never written: an edited name gets a copy, and later the same tensor object back.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._shared: dict[str, Tensor] = {}
        self._copies: dict[str, Tensor] = {}

    def give(self, given: Mapping[str, Tensor], programs: Mapping[str, Program]) -> dict[str, Tensor]:
        """Return the tensors to write for `programs`: the given tensor, or a copy if other names share its memory.

        A name that was untied earlier and has no program now is tied again. A copy holds the shared tensor's value.
        """
        for name in [name for name in self._shared if name not in programs]:
            self._tie(name)
        targets = dict(given)
        users = self._find_users_of_originals(targets)
        shared = {*sharers(self._module, set(targets)), *overlapping(targets), *users}
        for name in sorted(shared):
            self._shared[name] = targets[name]
            targets[name] = self._copies[name] = _copy(targets[name])
            put(self._module, name, targets[name])
        if shared:
            drop_compiled()
        return targets

    def _find_users_of_originals(self, given: Mapping[str, Tensor]) -> list[str]:
        """Return the names in the memory of a shared tensor that another name was untied from earlier."""
        storages = {original.untyped_storage()._cdata for original in self._shared.values()}
        return [name for name, tensor in given.items() if tensor.untyped_storage()._cdata in storages]

    def original(self, name: str) -> Tensor | None:
        """Return the shared tensor that `name` was untied from, or None if `name` is not untied."""
        return self._shared.get(name)

    @property
    def nbytes(self) -> int:
        """The size in bytes of the copies that untied names have."""
        return sum(shared.nbytes for shared in self._shared.values())

    def take_back(self) -> None:
        """Give every name its shared tensor back."""
        for name in list(self._shared):
            self._tie(name)

    def _tie(self, name: str) -> None:
        self.repair()
        put_back(self._module, name, self._shared[name])
        del self._shared[name], self._copies[name]
        drop_compiled()

    def repair(self) -> None:
        """Give every name that was tied to an untied copy its shared tensor back.

        `model.tie_weights()` ties the other names of a tensor to the copy if the copy has the name that they are tied
        to: the shared tensor would be lost, and the other names would carry the composition.
        """
        live = tensors(self._module)
        for name, copy in self._copies.items():
            for other in [other for other, tensor in live.items() if tensor is copy and other != name]:
                put_back(self._module, other, self._shared[name])
            if name in live and live[name] is self._shared[name]:  # tied again itself
                put(self._module, name, copy)


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Set the parameter or buffer `name` of the module to the object `tensor`."""
    holder, leaf = owner(module, name), name.rpartition(".")[2]
    registered = holder._parameters if leaf in holder._parameters else holder._buffers
    registered[leaf] = tensor  # type: ignore[assignment]


def put_back(module: nn.Module, name: str, original: Tensor) -> None:
    """Put `original` back in place of its replacement, in the dtype and on the device that the replacement has now."""
    try:
        replacement = getattr(owner(module, name), name.rpartition(".")[2])
    except AttributeError:
        return  # the module no longer has this name
    if (original.dtype, original.device) != (replacement.dtype, replacement.device):
        # The caller cast or moved the model, so this object takes a converted copy: no memory of a weight is written.
        original.data = original.data.to(replacement.device, replacement.dtype)
    if isinstance(original, nn.Parameter):
        original.requires_grad_(replacement.requires_grad)
    put(module, name, original)


def _copy(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False):
        value = tensor.detach().clone()
        return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def drop_compiled() -> None:
    """Drop all code that torch.compile holds in memory for this process; each function is compiled again when called.

    Dynamo notices a layer's new forward and compiles again, but at most eight times a function (recompile_limit): of
    twelve stacks in turn, the last four ran uncompiled, with a warning. Any function may have inlined a model's layers,
    and the model does not know these functions, so nothing narrower can be dropped. Inductor's cache on disk stays and
    makes the next compilation of the same graph short. Dropping takes microseconds if nothing was compiled.
    """
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
