"""The parts of an adapter, without the values of its tensors; standard library only."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from loratree_registry.core.records import AdapterSummary

Rule = Literal["additive", "override", "ordered"]
Joined = tuple[tuple[str, ...], ...]


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

    The file may hold a LoRA of each expert's own Linear layers instead. Then `joined_a` and `joined_b` list the keys
    of all experts for each of these layers, and `a` and `b` are the keys that PEFT gives the joined tensors: an
    expert's A is those of its layers under one another, and its B has theirs on the diagonal.
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
    joined_a: Joined = ()
    joined_b: Joined = ()

    @property
    def elements(self) -> int:
        """The number of values that the file holds for this delta."""
        b = self.out_features // self.groups // max(1, len(self.joined_b))
        factors = self.experts * self.rank * (self.in_features + b)
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
    """Every part of an adapter, sorted by name, and the keys of the tensors that nothing reads.

    A copy repeats the model that the adapter was trained on, or another tensor of the file. An unread tensor serves
    only training, or belongs to a LoRA without effect. Every other tensor of the file belongs to at least one part.
    """

    modules: tuple[ModuleSpec, ...]
    copies: tuple[str, ...] = ()
    values: tuple[ValueSpec, ...] = ()
    rows: tuple[RowsSpec, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        """The names of the base's tensors that the adapter changes."""
        return set(self._list_changes())

    def unties(self, tied: Iterable[Sequence[str]], digests: Mapping[str, str]) -> bool:
        """Return whether the adapter changes names of one tensor differently; `tied` lists such names.

        `digests` are the digests of the file's tensors: PEFT may save one trained value under each of its names.
        """
        changes = self._list_changes()

        def digest(part: tuple[str, str, object]) -> tuple[str, str, object]:
            rule, key, rest = part
            return rule, digests.get(key, key), rest

        return any(len({tuple(map(digest, changes.get(name, ()))) for name in names}) > 1 for names in tied)

    def _list_changes(self) -> dict[str, list[tuple[str, str, object]]]:
        """Return what changes each tensor, in the order in which it is applied: the rule, the key, and the rest."""
        changes: dict[str, list[tuple[str, str, object]]] = defaultdict(list)
        for value in self.values:
            changes[value.parameter].append(("value", value.key, value.dtype))
        for rows in self.rows:
            changes[rows.parameter].append(("rows", rows.key, (rows.rows, rows.dtype)))
        for module in self.modules:
            changes[module.parameter].append((module.rule, module.a, module.parameter))
            if module.bias is not None:
                changes[f"{module.name}.bias"].append(("bias", module.bias, module.name))
        return changes

    def summary(self, *, unties: bool = False, trained_tied: bool | None = None) -> AdapterSummary:
        """Return the distinct ranks, scales and dtypes, the counts of modules, parameters and rules, and the ties."""
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
            unties=unties,
            trained_tied=trained_tied,
        )
