"""A published adapter as stored: its parts by the base's tensor names."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows, Rescale, Shift, alike
from loratree_composer.arithmetic.lowrank import LowRank, bound_of
from loratree_composer.arithmetic.precision import full_float32
from loratree_composer.arithmetic.program import ChainStep, Program, programs
from loratree_registry.errors import Invalid
from loratree_registry.peft_format.names import LAYER
from loratree_registry.peft_format.spec import AdapterSpec, Joined, ModuleSpec


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """A part scale · B A of one tensor, in the dtype of the file: a [rank, in], b [out, rank], or [experts, …] of both.

    `transposed` is True if the base stores the tensor as [in, out]. `magnitude` [out] makes the part DoRA. `depth` is
    the number of LoRAs on other parameters of the same experts that PEFT has wrapped around this LoRA. `bound` bounds
    every |value| of B A, computed once when the file is read.
    """

    kind: str
    scale: float
    a: Tensor
    b: Tensor
    transposed: bool = False
    groups: int = 1
    magnitude: Tensor | None = None
    depth: int = 0
    bound: float | None = None

    def edit(self, weight: float) -> Edit:
        """Return the edit of this part at a level weight, with the scales folded in float32."""
        delta = self.folded(weight)
        delta = delta.transposed() if self.transposed else delta
        if self.magnitude is None:
            bound = None if self.bound is None else self.bound * abs(weight * self.scale)
            return Add(delta, self.kind, self.groups, bound)
        return Rescale(delta, self.magnitude, int(self.transposed), self.kind)

    def folded(self, weight: float) -> LowRank:
        """Return weight · scale · B A, folded in float32."""
        return LowRank.scaled(self.a, self.b, weight * self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class Bias:
    """A part that adds scale · value [out] to a bias."""

    scale: float
    value: Tensor

    def edit(self, weight: float) -> Edit:
        """Return the edit of this part at a level weight, in float32."""
        return Shift(self.value.to(torch.promote_types(self.value.dtype, torch.float32)) * (weight * self.scale))


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A part that replaces a whole tensor by `value`."""

    value: Tensor

    def edit(self, _: float) -> Edit:
        """Return the edit of this part; its level weight is 1."""
        return Replace(self.value)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A part that replaces `rows` of a tensor by `value` [len(rows), …]."""

    rows: Tensor
    value: Tensor

    def edit(self, _: float) -> Edit:
        """Return the edit of this part; its level weight is 1."""
        return ReplaceRows(self.rows, self.value)


AdapterPart = Factors | Bias | Value | Rows


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An adapter: its parts by the base's tensor names, sorted, its version's digest, and its config's task_type."""

    parts: Mapping[str, tuple[AdapterPart, ...]]
    digest: str = ""
    task_type: str | None = None

    def loaded(self) -> "Adapter":
        """Return the adapter with its parts in memory, also if they are read later."""
        return self.parts.load() if isinstance(self.parts, PartsLater) else self

    @property
    def nbytes(self) -> int:
        """The size of its tensors in bytes."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes in which its factors and values are stored."""
        return {tensor.dtype for tensor in self._tensors() if tensor.is_floating_point()}

    def unties(self, tied: Iterable[Sequence[str]]) -> bool:
        """Return whether the adapter changes names of one tensor of the base differently; `tied` lists such names.

        AdapterSpec.unties gives the same answer from digests, when the adapter is published.
        """
        changed = [
            [self.parts.get(name, ()) for name in names] for names in tied if not self.parts.keys().isdisjoint(names)
        ]
        return any(not _are_same(first, other) for first, *others in changed for other in others)

    def step(self, weight: float) -> ChainStep:
        """Return the chain step with the adapter's edits at a level weight.

        Raises Invalid if the weight is not 1 and a part is not a plain delta.
        """
        if weight != 1 and not all(_is_additive(part) for parts in self.parts.values() for part in parts):
            raise Invalid(
                f"a level weight of {weight} has no meaning for an adapter that replaces or rescales weights: use 1, "
                "or 0 to leave the adapter out"
            )
        return ChainStep(self.digest, weight, _Edits(self.parts, weight))

    def _tensors(self) -> Iterable[Tensor]:
        for part in (part for parts in self.parts.values() for part in parts):
            yield from tensors_of(part)


def tensors_of(part: AdapterPart) -> Iterator[Tensor]:
    """Yield the tensors of a part."""
    yield from (value for value in (getattr(part, field.name) for field in fields(part)) if isinstance(value, Tensor))


class PartsLater(Mapping[str, tuple[AdapterPart, ...]]):
    """Parts that `load` gets with their adapter when they are asked for, and that are not kept here."""

    def __init__(self, load: Callable[[], Adapter]) -> None:
        self.load = load

    def __getitem__(self, name: str) -> tuple[AdapterPart, ...]:
        return self.load().parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.load().parts)

    def __len__(self) -> int:
        return len(self.load().parts)

    def __contains__(self, name: object) -> bool:
        return name in self.load().parts


WeightedChain = Sequence[tuple[Adapter, float]]  # root to leaf, with level weights


class _Edits(Mapping[str, tuple[Edit, ...]]):
    """The edits of an adapter's parts at a level weight, folded in float32 at each access."""

    def __init__(self, parts: Mapping[str, tuple[AdapterPart, ...]], weight: float) -> None:
        self._parts, self._weight = parts, weight

    def __getitem__(self, name: str) -> tuple[Edit, ...]:
        with full_float32():
            return tuple(part.edit(self._weight) for part in self._parts[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


class StoredTensors(Protocol):
    """A source of an adapter's tensors, by key."""

    def get_tensor(self, name: str) -> Tensor:
        """Read one tensor to the CPU."""
        ...


def read_adapter(file: Path, spec: AdapterSpec, *, digest: str = "", task_type: str | None = None) -> Adapter:
    """Read the parts that `spec` names from a safetensors file. Raises Invalid if the file does not hold them."""
    try:
        with torch.inference_mode(False), safe_open(file, framework="pt") as tensors:
            parts = read_parts(tensors, spec)
    except FileNotFoundError as error:
        raise Invalid(f"{file} was removed while it was in use: run the same command again") from error
    except (SafetensorError, OSError) as error:
        raise Invalid(f"{file} does not hold the adapter that its version describes: {error}") from error
    return Adapter(parts, digest, task_type)


def read_parts(tensors: StoredTensors, spec: AdapterSpec) -> dict[str, tuple[AdapterPart, ...]]:
    """Read the parts that `spec` names, by the base's tensor names, sorted: values and rows before deltas."""
    parts: dict[str, list[AdapterPart]] = defaultdict(list)
    for value in spec.values:
        parts[value.parameter].append(Value(tensors.get_tensor(value.key)))
    for rows in spec.rows:
        parts[rows.parameter].append(Rows(torch.tensor(rows.rows), tensors.get_tensor(rows.key)))
    for module in spec.modules:
        parts[module.parameter].append(_read_factors(tensors, module))
        if module.bias is not None:
            parts[f"{module.name}.bias"].append(Bias(module.scale, tensors.get_tensor(module.bias)))
    return {name: tuple(parts[name]) for name in sorted(parts)}


def programs_of(chain: WeightedChain) -> dict[str, Program]:
    """Return the program of each tensor for a chain, root to leaf, in float32; a level weight of 0 drops a level."""
    return programs([adapter.step(weight) for adapter, weight in chain if weight])


def is_untied(chain: WeightedChain, tied: Sequence[Sequence[str]]) -> bool:
    """Return whether a level of the chain changes names of one tensor differently; `tied` lists such names.

    From then on the names are apart for every deeper level, even if one of these gives them equal values again.
    """
    return any(adapter.unties(tied) for adapter, weight in chain if weight)


def _are_same(one: Sequence[AdapterPart], other: Sequence[AdapterPart]) -> bool:
    """Return whether two tensors get the same whole values and rows, to the bit; deltas always count as different."""
    pairs = list(zip(one, other, strict=False))
    return len(one) == len(other) and all(
        isinstance(first, Value | Rows) and alike(first, second) for first, second in pairs
    )


def _is_additive(part: AdapterPart) -> bool:
    return isinstance(part, Bias) or (isinstance(part, Factors) and part.magnitude is None)


def _read_factors(tensors: StoredTensors, module: ModuleSpec) -> Factors:
    if module.joined_a:
        a, b = _join_a(tensors, module.joined_a), _join_b(tensors, module.joined_b)
    else:
        a, b = (tensors.get_tensor(key) for key in (module.a, module.b))
    magnitude = None if module.magnitude is None else tensors.get_tensor(module.magnitude).reshape(-1)
    experts, rank, groups = module.experts, module.rank, module.groups
    expected = [experts * rank, module.in_features], [module.out_features, rank * experts // groups]
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if [list(a.shape), list(b.shape)] != list(expected):
        raise Invalid(f"{module.name} holds A {list(a.shape)} and B {list(b.shape)}, its version says {expected}")
    if experts > 1:
        a = a.reshape(experts, rank, -1)  # the file stores A expert by expert
        b = b.reshape(len(b), rank, experts).permute(2, 0, 1)  # in B the index of the expert varies fastest
    depth = module.a.count(f".{LAYER}.")
    bound = bound_of(a, b)
    return Factors(module.kind, module.scale, a, b, module.transposed, groups, magnitude, depth, bound)


def _join_a(tensors: StoredTensors, keys: Joined) -> Tensor:
    """Return A [experts · rank, in] of experts whose layers have each their own: one under the other in each expert."""
    return torch.cat([tensors.get_tensor(key) for expert in zip(*keys, strict=True) for key in expert])


def _join_b(tensors: StoredTensors, keys: Joined) -> Tensor:
    """Return B [out, rank · experts] of experts whose layers have each their own: on the diagonal in each expert."""
    parts = [torch.stack([tensors.get_tensor(key) for key in layer], dim=-1) for layer in keys]  # [out, rank, experts]
    (out, rank, experts), layers = parts[0].shape, len(parts)
    whole = parts[0].new_zeros(layers, out, layers, rank, experts)
    for at, part in enumerate(parts):
        whole[at, :, at] = part
    return whole.reshape(layers * out, layers * rank * experts)
