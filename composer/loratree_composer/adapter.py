"""One published adapter: its factors by module, as stored, and the chain's sum of several."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loratree_composer.lowrank import LowRank, concat
from loratree_composer.precision import full_float32
from loratree_registry.adapter_spec import AdapterSpec, ModuleSpec
from loratree_registry.errors import Invalid, listed


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """scale · B A at one module, in the dtype of the file: a [rank, in], b [out, rank]."""

    kind: str
    scale: float
    a: Tensor
    b: Tensor

    def folded(self, weight: float) -> LowRank:
        """weight · scale · B A, folded in float32."""
        return LowRank.scaled(self.a, self.b, weight * self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An additive adapter: its factors by the base's module names, sorted, and what its config calls its task."""

    modules: Mapping[str, Factors]
    task_type: str | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of its factors."""
        return sum(factors.a.nbytes + factors.b.nbytes for factors in self.modules.values())

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes that its factors are stored in."""
        return {tensor.dtype for factors in self.modules.values() for tensor in (factors.a, factors.b)}


def read_adapter(file: Path, spec: AdapterSpec, *, task_type: str | None = None) -> Adapter:
    """Reads the factors that `spec` names from a safetensors file. Raises Invalid where the file does not hold them."""
    other = [f"{module.name} ({module.rule})" for module in spec.modules if module.rule != "additive"]
    if other:
        raise Invalid(f"only additive modules are composed: {listed(other)}; publish a plain LoRA")
    try:
        with torch.inference_mode(False), safe_open(file, framework="pt") as tensors:
            return Adapter({module.name: _factors(tensors, module) for module in spec.modules}, task_type)
    except (SafetensorError, OSError) as error:
        raise Invalid(f"{file} does not hold the adapter that its version describes: {error}") from error


def summed(chain: Iterable[tuple[Adapter, float]]) -> dict[str, LowRank]:
    """Σ wᵢ sᵢ BᵢAᵢ by module, of (adapter, level weight) from root to leaf, in float32; weight 0 drops a level."""
    levels: dict[str, list[LowRank]] = defaultdict(list)
    with full_float32():
        for adapter, weight in chain:
            for name, factors in adapter.modules.items() if weight else ():
                levels[name].append(factors.folded(weight))
        return {name: concat(levels[name]) for name in sorted(levels)}


def _factors(tensors: Any, module: ModuleSpec) -> Factors:
    a, b = (tensors.get_tensor(key) for key in (module.a, module.b))
    expected = (module.rank, module.in_features), (module.out_features, module.rank)
    if (tuple(a.shape), tuple(b.shape)) != expected:
        raise Invalid(f"{module.name} holds A {list(a.shape)} and B {list(b.shape)}, its version says {expected}")
    return Factors(module.kind, module.scale, a, b)
