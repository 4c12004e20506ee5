"""The config, the tensors and the base of one adapter while it is checked; standard library only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from loratree_registry.peft_format.findings import Findings
from loratree_registry.peft_format.names import PREFIX, BaseIndex
from loratree_registry.peft_format.scaling import shown
from loratree_registry.peft_format.spec import Joined
from loratree_registry.tensor_files.header import Tensor

FLOATS: Final = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """An adapter's config, its tensors and their digests by key, its base, and the problems that were recorded.

    `digests` needs no A or B, because they are compared with nothing. It is None for a published adapter.
    `on_base` is true if the adapter was trained on the plain base, false if on a composed model. `joined` has the keys
    in the file of each tensor that is joined from those of single experts (joined_experts.py).
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    digests: Mapping[str, str] | None
    base: BaseIndex
    findings: Findings
    on_base: bool = True
    joined: Mapping[str, Joined] = field(default_factory=dict)

    def says(self, field: str) -> bool:
        """Return whether a field of the config is true."""
        return self.config.get(field) is True

    def names(self, field: str) -> list[str]:
        """Return the names that a config field lists. If it is no list of names, record a problem and return []."""
        value = self.config.get(field) or []
        if isinstance(value, list) and all(isinstance(name, str) and name for name in value):
            return value
        self.findings.add(f"{field} is {shown(value)}, expected a list of names")
        return []

    def repeats_base(self, key: str, parameter: str) -> bool:
        """Return whether a tensor is the base's, in its dtype or cast. Without digests, compare only the shape."""
        if not self.resembles_base(key, parameter):
            return False
        source, dtype = self.base.source(parameter), self.tensors[key].dtype
        expected = source.sha256 if dtype == source.dtype else self.base.casts.get(source.name, {}).get(dtype)
        return self.digests is None or (expected is not None and self.digests.get(key) == expected)

    def resembles_base(self, key: str, parameter: str) -> bool:
        """Return whether a tensor has the shape of the base's, and its dtype or another one that it can be cast to."""
        tensor, source = self.tensors[key], self.base.source(parameter)
        is_cast = tensor.dtype in FLOATS and source.dtype in FLOATS
        return tensor.shape == source.shape and (is_cast or tensor.dtype == source.dtype)

    def repeats(self, key: str, other: str) -> bool:
        """Return whether two tensors of the file have the same bytes. Without digests, compare only dtype and shape."""
        if other not in self.tensors:
            return False
        first, second = self.tensors[key], self.tensors[other]
        same = (first.dtype, first.shape) == (second.dtype, second.shape)
        return same and (self.digests is None or self.digests.get(key, key) == self.digests.get(other, other))

    def is_float(self, key: str) -> bool:
        """Return whether a tensor has a dtype that is composed; record a problem if not."""
        dtype = self.tensors[key].dtype
        if dtype not in FLOATS:
            self.findings.add(f"tensor {key} is {dtype}, expected one of {', '.join(FLOATS)}")
        return dtype in FLOATS


def key_of(name: str) -> str:
    """Return the key under which PEFT saves the tensor `name`."""
    return PREFIX + name
