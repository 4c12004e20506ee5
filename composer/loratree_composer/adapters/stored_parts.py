"""An adapter's parts, read from its file when they are asked for and not kept."""

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
    """The parts that `spec` names in a safetensors file, by the base's tensor names; Invalid where it cannot be read.

    They are read, never mapped: pages that were mapped and touched count as the process's memory until the unmapping.
    """

    def __init__(self, file: Path, header: Header, spec: AdapterSpec) -> None:
        self._shard = Shard(file, header)
        self._specs = _by_tensor(spec)

    def __getitem__(self, name: str) -> tuple[AdapterPart, ...]:
        return read_parts(self, self._specs[name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def get_tensor(self, name: str) -> Tensor:
        """One tensor of the file, by its key."""
        return tensor_of(self._shard.raw(name), self._shard.type(name))


def _by_tensor(spec: AdapterSpec) -> dict[str, AdapterSpec]:
    """The parts of each tensor of the base, by its name, sorted."""
    modules: dict[str, list[ModuleSpec]] = defaultdict(list)
    values: dict[str, list[ValueSpec]] = defaultdict(list)
    rows: dict[str, list[RowsSpec]] = defaultdict(list)
    for module in spec.modules:
        modules[module.parameter].append(module)
        if module.bias is not None:
            modules[f"{module.name}.bias"].append(module)
    for value in spec.values:
        values[value.parameter].append(value)
    for some in spec.rows:
        rows[some.parameter].append(some)
    names = sorted({*modules, *values, *rows})
    return {
        name: AdapterSpec(tuple(modules[name]), values=tuple(values[name]), rows=tuple(rows[name])) for name in names
    }
