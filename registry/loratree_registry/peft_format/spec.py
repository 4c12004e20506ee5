"""What an adapter's files say, without its tensors' values; standard library only."""

from dataclasses import dataclass
from math import prod
from typing import Literal

from loratree_registry.core.records import AdapterSummary

Rule = Literal["additive", "override", "ordered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSpec:
    """A low-rank delta on one tensor of the base: ΔW = scale · B A, [out_features, in_features].

    `name` is the module's name in the base (`model.layers.0.self_attn.q_proj`), `parameter` the tensor that changes
    (`….q_proj.weight`), `kind` the layer's kind there (`Linear`). `a` and `b` are the tensors' keys in the file: a
    [rank, in_features], b [out_features, rank]. A convolution's in_features are its inputs times its kernel's size, and
    its factors have the kernel's dimensions; with `groups` > 1, b is [out_features, rank/groups] and the delta is no
    value of the weight at all. With `experts` > 1 the tensor holds that many matrices: a [experts·rank, in_features],
    expert by expert, and b [out_features, rank·experts], the expert's index fastest. `transposed` tells that the tensor
    keeps each matrix as [in_features, out_features].

    The rule is `additive`, or `ordered` for DoRA, whose magnitudes, out_features of them, are at the key `magnitude`
    ([1, out_features, 1, …] for a convolution). `bias` is the key of a lora_B.bias [out_features], which adds
    scale · bias to the module's own. Within one adapter, values and rows count before deltas.

    `scale` is all that the factors are multiplied by: for out_proj of a MultiheadAttention twice PEFT's own, as PEFT
    adds its delta twice in every forward.
    """

    name: str
    parameter: str
    kind: str
    rule: Rule
    rank: int
    scale: float
    a: str
    b: str
    in_features: int
    out_features: int
    dtype: str
    transposed: bool = False
    experts: int = 1
    groups: int = 1
    magnitude: str | None = None
    bias: str | None = None

    @property
    def elements(self) -> int:
        """How many numbers the file holds for it."""
        factors = self.experts * self.rank * (self.in_features + self.out_features // self.groups)
        return factors + self.out_features * ((self.magnitude is not None) + (self.bias is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSpec:
    """A whole value for one tensor of the base, at `key`: modules_to_save, or a trained bias. The rule is `override`.

    Tied tensors may share a key: each has a value of its own.
    """

    parameter: str
    key: str
    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsSpec:
    """Values for some rows of one tensor of the base, at `key` [len(rows), …]: trained tokens. The rule is `override`.

    Tied tensors share a key where PEFT trains them together.
    """

    parameter: str
    key: str
    rows: tuple[int, ...]
    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Every part of an adapter, sorted by name, and the tensors that only repeat what it was trained on, by key.

    Every tensor of the file belongs to at least one part or is such a copy, which nothing reads.
    """

    modules: tuple[ModuleSpec, ...]
    copies: tuple[str, ...] = ()
    values: tuple[ValueSpec, ...] = ()
    rows: tuple[RowsSpec, ...] = ()

    def follows(self) -> dict[str, str]:
        """Each tensor that has a part only because it is tied to another → that one, whose name the part's key has."""
        found: dict[str, str] = {}
        parts: list[ValueSpec | RowsSpec] = [*self.values, *self.rows]
        for part in parts:
            alike = [other.parameter for other in parts if other.key == part.key]
            own = max(alike, key=lambda name: (f".{name.rpartition('.')[0]}." in part.key, len(name)))
            if own != part.parameter:
                found[part.parameter] = own
        return found

    def summary(self) -> AdapterSummary:
        """The distinct ranks and scales, and how many of what."""
        modules = self.modules
        overrides: tuple[ValueSpec | RowsSpec, ...] = (*self.values, *self.rows)
        stored = {part.key: prod(part.shape) for part in overrides}  # a key that tied tensors share counts once
        dtypes = {module.dtype for module in modules} | {part.dtype for part in overrides}
        rules: list[Rule] = [module.rule for module in modules]
        rules += ["override"] * len(overrides)
        return AdapterSummary(
            ranks=sorted({module.rank for module in modules}, reverse=True),
            scales=sorted({module.scale for module in modules}),
            modules=len(modules),
            parameters=sum(module.elements for module in modules) + sum(stored.values()),
            dtypes=sorted(dtypes),
            rules={rule: rules.count(rule) for rule in sorted(set(rules))},
        )
