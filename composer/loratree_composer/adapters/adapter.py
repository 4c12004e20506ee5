"""One published adapter, as stored: its parts by the base's tensor names."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows, Rescale, Shift, alike
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.precision import full_float32
from loratree_composer.arithmetic.program import ChainStep, Program, programs
from loratree_registry.errors import Invalid
from loratree_registry.peft_format.names import LAYER
from loratree_registry.peft_format.spec import AdapterSpec, ModuleSpec


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """scale · B A on one tensor, in the dtype of the file: a [rank, in], b [out, rank], or [experts, …] of both.

    `transposed` tells that the tensor keeps the matrix as [in, out]. `magnitude` [out] makes it DoRA. `depth` tells how
    many LoRAs on other parameters of the same experts PEFT has wrapped around it.
    """

    kind: str
    scale: float
    a: Tensor
    b: Tensor
    transposed: bool = False
    groups: int = 1
    magnitude: Tensor | None = None
    depth: int = 0

    def edit(self, weight: float) -> Edit:
        """The edit that it is with a level weight, the scales folded in float32."""
        delta = self.folded(weight)
        delta = delta.transposed() if self.transposed else delta
        if self.magnitude is None:
            return Add(delta, self.kind, self.groups)
        return Rescale(delta, self.magnitude, int(self.transposed), self.kind)

    def folded(self, weight: float) -> LowRank:
        """weight · scale · B A, folded in float32."""
        return LowRank.scaled(self.a, self.b, weight * self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class Bias:
    """scale · value [out], added to a bias."""

    scale: float
    value: Tensor

    def edit(self, weight: float) -> Edit:
        """The edit that it is with a level weight, in float32."""
        return Shift(self.value.to(torch.promote_types(self.value.dtype, torch.float32)) * (weight * self.scale))


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A whole value in place of a tensor's."""

    value: Tensor

    def edit(self, _: float) -> Edit:
        """The edit that it is; its level weight is 1."""
        return Replace(self.value)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Values [len(rows), …] in place of some rows of a tensor."""

    rows: Tensor
    value: Tensor

    def edit(self, _: float) -> Edit:
        """The edit that it is; its level weight is 1."""
        return ReplaceRows(self.rows, self.value)


AdapterPart = Factors | Bias | Value | Rows


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter's parts by the base's tensor names, sorted; its version's digest, and its config's task_type.

    `follows` maps each tensor that has its part only because it is tied to another to that one.
    """

    parts: Mapping[str, tuple[AdapterPart, ...]]
    digest: str = ""
    task_type: str | None = None
    follows: Mapping[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes that its factors and values are stored in."""
        return {tensor.dtype for tensor in self._tensors() if tensor.is_floating_point()}

    def level(self, weight: float, *, apart: Collection[str] = ()) -> ChainStep:
        """Its edits with a level weight, but for the tensors `apart`.

        Raises Invalid for a weight other than 1 where a part is not a plain delta.
        """
        if weight != 1 and not all(_is_additive(part) for parts in self.parts.values() for part in parts):
            raise Invalid(
                f"a level weight of {weight} has no meaning for an adapter that replaces or rescales weights: it takes "
                "1, or 0 to leave it out"
            )
        return ChainStep(self.digest, weight, _Edits(self.parts, weight, frozenset(apart)))

    def _tensors(self) -> Iterable[Tensor]:
        for part in (part for parts in self.parts.values() for part in parts):
            yield from (value for value in (getattr(part, f.name) for f in fields(part)) if isinstance(value, Tensor))


WeightedChain = Sequence[tuple[Adapter, float]]  # root to leaf, with level weights


class _Edits(Mapping[str, tuple[Edit, ...]]):
    """The edits that parts are with a level weight, folded in float32 at each access."""

    def __init__(self, parts: Mapping[str, tuple[AdapterPart, ...]], weight: float, apart: frozenset[str]) -> None:
        self._parts, self._weight, self._apart = parts, weight, apart

    def __getitem__(self, name: str) -> tuple[Edit, ...]:
        with full_float32():
            return tuple(part.edit(self._weight) for part in self._parts[name])

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._parts if name not in self._apart)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class StoredTensors(Protocol):
    """Where an adapter's tensors are read from, by key."""

    def get_tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        ...


def read_adapter(file: Path, spec: AdapterSpec, *, digest: str = "", task_type: str | None = None) -> Adapter:
    """Reads the parts that `spec` names from a safetensors file. Raises Invalid where the file does not hold them."""
    try:
        with torch.inference_mode(False), safe_open(file, framework="pt") as tensors:
            parts = read_parts(tensors, spec)
    except (SafetensorError, OSError) as error:
        raise Invalid(f"{file} does not hold the adapter that its version describes: {error}") from error
    return Adapter(parts, digest, task_type, spec.follows())


def read_parts(tensors: StoredTensors, spec: AdapterSpec) -> dict[str, tuple[AdapterPart, ...]]:
    """The parts that `spec` names by the base's tensor names, sorted: values and rows before deltas."""
    parts: dict[str, list[AdapterPart]] = defaultdict(list)
    for value in spec.values:
        parts[value.parameter].append(Value(tensors.get_tensor(value.key)))
    for rows in spec.rows:
        parts[rows.parameter].append(Rows(torch.tensor(rows.rows), tensors.get_tensor(rows.key)))
    for module in spec.modules:
        parts[module.parameter].append(_factors(tensors, module))
        if module.bias is not None:
            parts[f"{module.name}.bias"].append(Bias(module.scale, tensors.get_tensor(module.bias)))
    return {name: tuple(parts[name]) for name in sorted(parts)}


def composed(chain: WeightedChain, *, above: WeightedChain = ()) -> dict[str, Program]:
    """What (adapter, level weight) from root to leaf do to each tensor, in float32; weight 0 drops a level.

    `above` is what the chain stands on and is no part of: where levels before have taken a tie apart, a part that is
    meant for both of its names is for its own alone, as it was in training.
    """
    standing: list[tuple[Adapter, frozenset[str]]] = []
    levels = []
    for adapter, weight in (*above, *chain):
        if weight:
            apart = frozenset(name for name, own in adapter.follows.items() if not _are_tied(name, own, standing))
            standing.append((adapter, apart))
            levels.append(adapter.level(weight, apart=apart))
    return programs(levels[sum(1 for _, weight in above if weight) :])


def _are_tied(name: str, own: str, standing: Sequence[tuple[Adapter, frozenset[str]]]) -> bool:
    """Tells whether levels have changed a tensor and the one that it is tied to alike."""
    return all(
        alike(*(() if of in apart else adapter.parts.get(of, ()) for of in (name, own))) for adapter, apart in standing
    )


def _is_additive(part: AdapterPart) -> bool:
    return isinstance(part, Bias) or (isinstance(part, Factors) and part.magnitude is None)


def _factors(tensors: StoredTensors, module: ModuleSpec) -> Factors:
    a, b = (tensors.get_tensor(key) for key in (module.a, module.b))
    magnitude = None if module.magnitude is None else tensors.get_tensor(module.magnitude).reshape(-1)
    experts, rank, groups = module.experts, module.rank, module.groups
    expected = [experts * rank, module.in_features], [module.out_features, rank * experts // groups]
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if [list(a.shape), list(b.shape)] != list(expected):
        raise Invalid(f"{module.name} holds A {list(a.shape)} and B {list(b.shape)}, its version says {expected}")
    if experts > 1:
        a = a.reshape(experts, rank, -1)  # expert by expert
        b = b.reshape(len(b), rank, experts).permute(2, 0, 1)  # the expert's index is fastest
    depth = module.a.count(f".{LAYER}.")
    return Factors(module.kind, module.scale, a, b, module.transposed, groups, magnitude, depth)
