"""The parts of an adapter, without the values of its tensors; standard library only."""

from dataclasses import dataclass
from math import prod
from typing import Literal

from loratree_registry.core.records import AdapterSummary

Rule = Literal["additive", "override", "ordered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSpec:
    """A low-rank delta on one tensor of the base: ΔW = scale · B A, [out_features, in_features].

    `name` is the module's name in the base (`model.layers.0.self_attn.q_proj`), `parameter` the tensor that changes
    (`….q_proj.weight`), `kind` the layer's kind (`Linear`). `a` and `b` are keys in the file: a [rank, in_features],
    b [out_features, rank]. If `transposed`, the base stores each matrix as [in_features, out_features].

    A convolution's in_features are its input channels times its kernel's size, and its A and B have the kernel's
    dimensions. With `groups` > 1, b is [out_features, rank/groups], and the delta cannot be added to the weight. With
    `experts` > 1, the tensor holds one matrix for each expert: a [experts·rank, in_features], expert by expert, and b
    [out_features, rank·experts], in which the expert's index changes fastest.

    The rule is `additive`, or `ordered` for DoRA. DoRA has out_features magnitudes, at the key `magnitude`
    ([1, out_features, 1, …] for a convolution). `bias` is the key of a lora_B.bias [out_features], and scale · bias is
    added to the module's own bias. Within one adapter, values and rows are applied before deltas. `scale` is the whole
    factor of B A: twice PEFT's own for a MultiheadAttention's out_proj, as PEFT adds that delta twice in each forward.
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
        """The number of values that the file holds for this delta."""
        factors = self.experts * self.rank * (self.in_features + self.out_features // self.groups)
        return factors + self.out_features * ((self.magnitude is not None) + (self.bias is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSpec:
    """A whole value for one tensor of the base, at `key`: a saved module's, or a trained bias. The rule is `override`.

    Tied tensors may share a key: the value is set in each of them.
    """

    parameter: str
    key: str
    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsSpec:
    """Values for some rows of one tensor of the base, at `key` [len(rows), …]: trained tokens. The rule is `override`.

    Tied tensors share a key if PEFT trains them together.
    """

    parameter: str
    key: str
    rows: tuple[int, ...]
    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Every part of an adapter, sorted by name, and the keys of the copies: tensors that nothing reads.

    A copy repeats the model that the adapter was trained on, or another tensor of the file. Every other tensor of the
    file belongs to at least one part.
    """

    modules: tuple[ModuleSpec, ...]
    copies: tuple[str, ...] = ()
    values: tuple[ValueSpec, ...] = ()
    rows: tuple[RowsSpec, ...] = ()

    def tied_to(self) -> dict[str, str]:
        """Map each tensor that changes only through a tie to the tensor that it is tied to."""
        sources: dict[str, str] = {}
        parts: list[ValueSpec | RowsSpec] = [*self.values, *self.rows]
        for part in parts:
            alike = [other.parameter for other in parts if other.key == part.key]
            own = max(alike, key=lambda name: (f".{name.rpartition('.')[0]}." in part.key, len(name)))
            if own != part.parameter:
                sources[part.parameter] = own
        return sources

    def summary(self) -> AdapterSummary:
        """Return the distinct ranks, scales and dtypes, and the counts of modules, parameters and rules."""
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
