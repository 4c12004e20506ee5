"""The pristine values of the tensors that a merge overwrites: on their own device, on the host, or in files."""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from loratree_registry.errors import Invalid

PristinePlace = Literal["host", "device", "files"]


class Source(Protocol):
    """A reader of a base's tensors by name. Raises Invalid if a tensor is missing or has changed."""

    def read(self, name: str) -> Tensor:
        """Return the base's tensor on the CPU, in the dtype that it is stored in."""
        ...


class Pristine:
    """The values of tensors from before the first merge, to restore them bit for bit any number of times.

    `host` and `device` hold a copy of every tensor that a merge has written, until `forget`. `files` holds no copy: it
    reads `source` again, and hashes the bytes, for every merge and every restore.
    """

    def __init__(self, place: PristinePlace, source: Source | None = None) -> None:
        if place not in get_args(PristinePlace):
            raise Invalid(f"pristine is one of {', '.join(get_args(PristinePlace))}, got {place!r}")
        if place == "files" and source is None:
            raise Invalid("the pristine weights can be read from files only where the base's checkpoint is known")
        self._place, self._source = place, source
        self._copies: dict[str, _Copy] = {}

    def keep(self, name: str, tensor: Tensor) -> None:
        """Save the present value of `tensor` for later reads, unless the saved value is still the same."""
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
        """Return the pristine value of `name`, on any device, in `like`'s dtype. Raises Invalid if the file changed."""
        copy = self._copies[name].value
        if copy is not None:
            return copy
        assert self._source is not None
        return self._source.read(name).to(like.dtype)

    def origin(self, name: str) -> object:
        """Return an object that is replaced whenever the pristine value of `name` is."""
        return self._copies[name]

    def is_back(self, name: str, tensor: Tensor) -> None:
        """Record that `tensor` holds its pristine value again, until someone writes to it."""
        self._copies[name].stamp = stamp(tensor)

    @property
    def nbytes(self) -> int:
        """The size of the copies in bytes."""
        return sum(copy.value.nbytes for copy in self._copies.values() if copy.value is not None)

    def forget(self) -> None:
        """Free every copy. Call it only while every tensor holds its pristine value."""
        self._copies.clear()


@dataclass(slots=True, eq=False)
class _Copy:
    value: Tensor | None
    stamp: object = None

    def is_of(self, tensor: Tensor) -> bool:
        """Return whether the tensor still holds this value: not written to, moved or cast since then."""
        return self.stamp is not None and self.stamp == stamp(tensor)


def stamp(tensor: Tensor) -> object:
    """Return a value that changes if the tensor is replaced, moved, cast or written; None if writes are not counted."""
    if tensor.is_inference():
        return None
    return id(tensor), tensor.data_ptr(), tensor.dtype, tensor._version
