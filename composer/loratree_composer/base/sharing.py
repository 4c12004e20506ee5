"""Tensors of a module that share memory."""

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor, nn


def ties(module: nn.Module) -> dict[str, str]:
    """Map each persistent tensor's name to the first name of that tensor; an untied name maps to itself.

    The order is the order of `state_dict`. Two tensors are one tensor if they have equal storage, offset, shape and
    strides: this works on the meta device too, and for two parameters that were made from one tensor.
    """
    first: dict[object, str] = {}
    return {name: first.setdefault(_identity_of(tensor), name) for name, tensor in tensors(module).items()}


def select_tied(firsts: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of `ties` whose name is not the first of its tensor."""
    return {name: first for name, first in firsts.items() if name != first}


def sharers(module: nn.Module, names: set[str]) -> dict[str, list[str]]:
    """Map each of `names` that shares bytes with other tensors of the module to the names of the other tensors."""
    by_storage = defaultdict(list)
    for name, tensor in tensors(module).items():
        by_storage[_storage_of(tensor)].append((name, *_extent_of(tensor)))
    overlaps = {}
    for group in by_storage.values():
        for name, start, end in (entry for entry in group if entry[0] in names):
            others = [other for other, low, high in group if other != name and low < end and start < high]
            if others:
                overlaps[name] = others
    return overlaps


def overlapping(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors with several of their own values at one address, such as expanded tensors."""
    return [name for name, tensor in tensors.items() if tensor.numel() > _span_of(tensor)]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers by name: the objects themselves, not copies."""
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def is_sharded(tensor: Tensor) -> bool:
    """Return whether the tensor is a DTensor, of which each process holds a part."""
    return type(tensor).__name__ == "DTensor"


def _identity_of(tensor: Tensor) -> object:
    if tensor.numel() == 0:
        return id(tensor)
    return _storage_of(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _storage_of(tensor: Tensor) -> int:
    # On the meta device every data_ptr is 0, so only the storage object tells two tensors apart.
    return int(tensor.untyped_storage()._cdata)


def _extent_of(tensor: Tensor) -> tuple[int, int]:
    """Return the bytes [start, end) that a tensor spans in its storage."""
    start, item = int(tensor.storage_offset()), tensor.element_size()
    return start * item, (start + _span_of(tensor)) * item


def _span_of(tensor: Tensor) -> int:
    """Return how many elements of its storage lie from a tensor's first value to its last."""
    if tensor.numel() == 0:
        return 0
    return 1 + int(sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)))
