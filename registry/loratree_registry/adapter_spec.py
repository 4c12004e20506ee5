"""What an adapter's files say, without its tensors' values; standard library only."""

from dataclasses import dataclass
from typing import Literal

from loratree_registry.schemas import AdapterSummary

Rule = Literal["additive", "override", "ordered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSpec:
    """One adapted module of the base: ΔW = scale · B A for the rule `additive`.

    `name` is the module's name in the base (`model.layers.0.self_attn.q_proj`), `kind` its layer kind there (`Linear`,
    `Conv1D`). `a` and `b` are the tensors' keys in the file: a [rank, in], b [out, rank], whatever way round the layer
    keeps its weight.
    """

    name: str
    kind: str
    rule: Rule
    rank: int
    scale: float
    a: str
    b: str
    in_features: int
    out_features: int
    dtype: str


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Every adapted module, sorted by name, and the tensors that only repeat the base's, by key.

    Every tensor of the file belongs to exactly one module or is such a copy, which nothing reads.
    """

    modules: tuple[ModuleSpec, ...]
    copies: tuple[str, ...] = ()

    def summary(self) -> AdapterSummary:
        """The distinct ranks and scales, and how many of what."""
        modules = self.modules
        rules = sorted({module.rule for module in modules})
        return AdapterSummary(
            ranks=sorted({module.rank for module in modules}, reverse=True),
            scales=sorted({module.scale for module in modules}),
            modules=len(modules),
            parameters=sum(module.rank * (module.in_features + module.out_features) for module in modules),
            dtypes=sorted({module.dtype for module in modules}),
            rules={rule: sum(module.rule == rule for module in modules) for rule in rules},
        )
