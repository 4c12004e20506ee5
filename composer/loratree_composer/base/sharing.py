"""Which names of a module share their memory."""

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor, nn


def ties(module: nn.Module) -> dict[str, str]:
    """Every persistent tensor's name → the first name of the very same tensor, itself where it is untied.

    The order is the module's own (`state_dict`). The same tensor is the same storage, offset, shape and strides, so
    this works on the meta device and where two parameters were made of one tensor.
    """
    first: dict[object, str] = {}
    return {name: first.setdefault(_place(tensor), name) for name, tensor in tensors(module).items()}


def sharers(module: nn.Module, names: set[str]) -> dict[str, list[str]]:
    """Those of `names` whose bytes overlap other tensors of the module → the other tensors' names."""
    by_storage = defaultdict(list)
    for name, tensor in tensors(module).items():
        by_storage[_storage(tensor)].append((name, *_extent(tensor)))
    found = {}
    for group in by_storage.values():
        for name, start, end in (entry for entry in group if entry[0] in names):
            others = [other for other, low, high in group if other != name and low < end and start < high]
            if others:
                found[name] = others
    return found


def overlapping(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that have values of their own at one place, such as expanded ones."""
    return [name for name, tensor in tensors.items() if tensor.numel() > _span(tensor)]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and persistent buffers by name, the objects themselves."""
    state = module.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _place(tensor: Tensor) -> object:
    if tensor.numel() == 0:
        return id(tensor)
    return _storage(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _storage(tensor: Tensor) -> int:
    # On the meta device every data_ptr is 0; the storage object is what tells them apart.
    return int(tensor.untyped_storage()._cdata)


def _extent(tensor: Tensor) -> tuple[int, int]:
    """The bytes [start, end) of its storage that a tensor spans."""
    start, item = int(tensor.storage_offset()), tensor.element_size()
    return start * item, (start + _span(tensor)) * item


def _span(tensor: Tensor) -> int:
    """How many places of its storage lie from a tensor's first value to its last."""
    if tensor.numel() == 0:
        return 0
    return 1 + int(sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)))
