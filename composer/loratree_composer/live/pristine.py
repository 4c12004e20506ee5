"""The pristine values of the tensors that a merge overwrites: on their own device, on the host, or in files."""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from loratree_registry.errors import Invalid

PristinePlace = Literal["host", "device", "files"]


class Source(Protocol):
    """Where a base's tensors can be read again, by name; Invalid where they are not there or changed."""

    def read(self, name: str) -> Tensor:
        """The base's tensor, on the CPU, in the dtype that it is stored in."""
        ...


class Pristine:
    """What each tensor held before it was merged into, so that it comes back bit for bit, however often.

    `host` and `device` keep a copy, as large as the tensors that were ever merged into, until `forget`; `files` keeps
    none and reads `source` again, its bytes hashed, for every merge and every restore.
    """

    def __init__(self, place: PristinePlace, source: Source | None = None) -> None:
        if place not in get_args(PristinePlace):
            raise Invalid(f"pristine is one of {', '.join(get_args(PristinePlace))}, got {place!r}")
        if place == "files" and source is None:
            raise Invalid("the pristine weights can be read from files only where the base's checkpoint is known")
        self._place, self._source = place, source
        self._copies: dict[str, _Copy] = {}

    def keep(self, name: str, tensor: Tensor) -> None:
        """Sees to it that the value which `tensor` has now can be read again, where it is not known already."""
        known = self._copies.get(name)
        if known is not None and known.is_of(tensor):
            return
        if self._place == "files":
            self._copies[name] = _Copy(None)
            return
        place = "cpu" if self._place == "host" else tensor.device
        with torch.inference_mode(False):
            self._copies[name] = _Copy(tensor.detach().to(place, copy=True))

    def read(self, name: str, like: Tensor) -> Tensor:
        """The pristine value of `name` in the dtype of `like`, wherever it is. Raises Invalid for changed files."""
        copy = self._copies[name].value
        if copy is not None:
            return copy
        assert self._source is not None
        return self._source.read(name).to(like.dtype)

    def origin(self, name: str) -> object:
        """An object that is another one when the pristine value of `name` is."""
        return self._copies[name]

    def is_back(self, name: str, tensor: Tensor) -> None:
        """Notes that `tensor` holds its pristine value again, as long as nobody writes to it."""
        self._copies[name].stamp = stamp(tensor)

    def forget(self) -> None:
        """Frees every copy. Only for tensors that all hold their pristine values."""
        self._copies.clear()


@dataclass(slots=True, eq=False)
class _Copy:
    value: Tensor | None
    stamp: object = None

    def is_of(self, tensor: Tensor) -> bool:
        """Tells whether the tensor was not written to, moved or cast since it held this value."""
        return self.stamp is not None and self.stamp == stamp(tensor)


def stamp(tensor: Tensor) -> object:
    """What changes when a tensor is replaced, moved, cast or written to; None where torch counts no writes."""
    if tensor.is_inference():
        return None
    return id(tensor), tensor.data_ptr(), tensor.dtype, tensor._version
