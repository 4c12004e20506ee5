"""The rank and scale of each module, from a LoRA config, as PEFT computes them; standard library only."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.patterns import ModulePatterns

MAX_RANK: Final = 2**24


@dataclass(frozen=True, slots=True)
class Scaling:
    """The r and α of a config, and the rank_pattern and alpha_pattern that replace them for matching modules."""

    r: int
    alpha: float
    rslora: bool
    ranks: ModulePatterns
    alphas: ModulePatterns

    def rank(self, module: str) -> int:
        """Return the rank that PEFT gives `module`."""
        return int(self.ranks.first(module, self.r))

    def scale(self, module: str) -> float:
        """Return α/r, or α/√r for rsLoRA, in float64 as PEFT computes it."""
        rank, alpha = self.rank(module), self.alphas.first(module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_scaling(config: Mapping[str, Any]) -> Scaling:
    """Read r, lora_alpha, use_rslora, rank_pattern and alpha_pattern. Raises Invalid, listing every wrong field."""
    r, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    rslora = config.get("use_rslora") or False
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    expected = {
        f"r is {shown(r)}, expected a whole number from 1": _is_rank(r),
        f"lora_alpha is {shown(alpha)}, expected a finite number": _is_number(alpha),
        f"use_rslora is {shown(rslora)}, expected true or false": isinstance(rslora, bool),
        f"rank_pattern is {shown(ranks)}, expected an object of whole numbers from 1": _is_table(ranks, _is_rank),
        f"alpha_pattern is {shown(alphas)}, expected an object of finite numbers": _is_table(alphas, _is_number),
    }
    wrong = [problem for problem, right in expected.items() if not right]
    if wrong:
        raise Invalid(listed(wrong))
    return Scaling(r, alpha, rslora, ModulePatterns("rank_pattern", ranks), ModulePatterns("alpha_pattern", alphas))


def shown(value: object) -> str:
    """Return a config's value for a message: JSON, cut at 60 characters."""
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_number(value: object) -> bool:
    return (type(value) is int and abs(value) < 2**53) or (type(value) is float and math.isfinite(value))


def _is_table(value: object, is_right: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(is_right(item) for item in value.values())
