"""An adapter's parts, read from its file at each access and never cached."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from loratree_composer.adapters.adapter import AdapterPart, read_parts
from loratree_composer.base.stored_tensor import tensor_of
from loratree_registry.peft_format.spec import AdapterSpec, ModuleSpec, RowsSpec, ValueSpec
from loratree_registry.tensor_files.checkpoint import Shard
from loratree_registry.tensor_files.header import Header


class StoredParts(Mapping[str, tuple[AdapterPart, ...]]):
    """The parts that `spec` names in a safetensors file, by the base's tensor names; Invalid if it cannot be read.

    The file is read, never mapped: the touched pages of a mapping count as the process's memory until it is unmapped.
    """

    def __init__(self, file: Path, header: Header, spec: AdapterSpec) -> None:
        self._shard = Shard(file, header)
        self._specs = _split_by_tensor(spec)

    def __getitem__(self, name: str) -> tuple[AdapterPart, ...]:
        return read_parts(self, self._specs[name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def get_tensor(self, name: str) -> Tensor:
        """Read one tensor of the file, by its key."""
        return tensor_of(self._shard.raw(name), self._shard.type(name))


def _split_by_tensor(spec: AdapterSpec) -> dict[str, AdapterSpec]:
    """Split a spec into one spec for each tensor of the base, by the tensor's name, sorted."""
    modules: dict[str, list[ModuleSpec]] = defaultdict(list)
    values: dict[str, list[ValueSpec]] = defaultdict(list)
    rows: dict[str, list[RowsSpec]] = defaultdict(list)
    for module in spec.modules:
        modules[module.parameter].append(module)
        if module.bias is not None:
            modules[f"{module.name}.bias"].append(module)
    for value in spec.values:
        values[value.parameter].append(value)
    for row in spec.rows:
        rows[row.parameter].append(row)
    names = sorted({*modules, *values, *rows})
    return {n: AdapterSpec(tuple(modules[n]), values=tuple(values[n]), rows=tuple(rows[n])) for n in names}
