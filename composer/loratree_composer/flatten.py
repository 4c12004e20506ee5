"""A chain as one ordinary PEFT adapter of rank Σr, in the form that every engine loads."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

import torch
from torch import Tensor

from loratree_composer.adapter import Adapter, summed
from loratree_composer.compress import compressed
from loratree_composer.compression import Kept, kept
from loratree_composer.layer_kind import TRANSPOSED
from loratree_composer.lowrank import LowRank
from loratree_registry.composition import Limit
from loratree_registry.errors import Invalid, listed
from loratree_registry.manifest import BaseManifest
from loratree_registry.peft_files import PREFIX

SIBLINGS: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True, eq=False)
class FlatAdapter:
    """adapter_config.json as a document, the tensors of adapter_model.safetensors, and their one dtype.

    `kept` tells what of each module a limit has left; nothing without one.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    dtype: torch.dtype
    kept: tuple[Kept, ...] = ()


def flattened(
    chain: Sequence[tuple[Adapter, float]], manifest: BaseManifest, *, base_model: str, limit: Limit | None = None
) -> FlatAdapter:
    """One PEFT LoRA that adds Σ wᵢsᵢBᵢAᵢ of (adapter, level weight): α = r, every module padded with zeros to one rank.

    Every scale is folded into B in float32. The factors are written in the smallest dtype that holds those of every
    level, if it holds the folded ones too, bit for bit; else in float32.

    A module's missing layers, and missing siblings of q, k, v and of gate, up, are filled with zeros: there are engines
    that drop a layer type otherwise. The task_type is the one that all levels share, else null: PEFT takes it to mean
    more than it says, such as a trained `score` for SEQ_CLS. `base_model` is what base_model_name_or_path says.

    `limit` truncates each module's sum; r is then the highest rank that is left, at most a limit's rank.

    Raises Invalid for no deltas, deltas that do not fit the base, and values that are not finite.
    """
    deltas = summed(chain)
    if not deltas:
        raise Invalid("there is no adapter to flatten, the composition is the base itself: compose it by merging")
    layers = _layers(manifest)
    _check(deltas, layers)
    cut = compressed(deltas, limit) if limit is not None else {}
    deltas |= {name: module.delta for name, module in cut.items()}
    dtype = exact(deltas, widest({dtype for adapter, _ in chain for dtype in adapter.dtypes}))
    rank = max(delta.rank for delta in deltas.values())
    tensors, names = {}, filled(deltas, layers)
    for name in sorted(names):
        delta = _padded(deltas.get(name), rank, layers[name], dtype)
        tensors[f"{PREFIX}{name}.lora_A.weight"] = delta.a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = delta.b
    overflown = sorted(key for key, tensor in tensors.items() if not tensor.isfinite().all())
    if overflown:
        raise Invalid(f"folding the scales overflows {dtype} in {listed(overflown)}: train with a smaller lora_alpha")
    kinds = {layers[name].kind for name in names}
    config = _config(rank, kinds, target_modules(names, manifest), task_type(chain), base_model)
    return FlatAdapter(config, tensors, dtype, kept(cut))


def exact(deltas: Mapping[str, LowRank], dtype: torch.dtype) -> torch.dtype:
    """`dtype` where it holds every factor bit for bit, else the dtype that the factors are summed in."""
    factors = [factor for delta in deltas.values() for factor in (delta.a, delta.b)]
    if all(torch.equal(factor.to(dtype).to(factor.dtype), factor) for factor in factors):
        return dtype
    return widest({factor.dtype for factor in factors})


def task_type(chain: Sequence[tuple[Adapter, float]]) -> str | None:
    """The task_type that every level's config has, None where they differ or have none."""
    tasks = {adapter.task_type for adapter, _ in chain}
    return tasks.pop() if len(tasks) == 1 else None


def widest(dtypes: Collection[torch.dtype]) -> torch.dtype:
    """The smallest dtype that holds every value of all: float16 beside bfloat16 gives float32, and so does none."""
    return reduce(torch.promote_types, dtypes or {torch.float32})


def filled(names: Collection[str], layers: Collection[str]) -> set[str]:
    """`names`, the same modules in every other layer, and their siblings, of those that `layers` has."""
    wanted = {_anywhere(sibling) for name in names for sibling in _siblings(name)}
    return {name for name in layers if _anywhere(name) in wanted}


def target_modules(names: Collection[str], manifest: BaseManifest) -> list[str] | str:
    """The shortest form that PEFT matches with exactly `names`: last segments, else full names, else a pattern.

    PEFT matches a list's entries with the ends of names, so that `proj` means `a.proj` too; a pattern with all of one.
    """
    modules = {module for parameter in manifest.parameters for module in _enclosing(parameter.name)}
    for targets in ({name.rpartition(".")[2] for name in names}, set(names)):
        if {module for module in modules if not targets.isdisjoint(_endings(module))} == set(names):
            return sorted(targets)
    return "|".join(re.escape(name) for name in sorted(names))


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    out_features: int
    in_features: int


def _layers(manifest: BaseManifest) -> dict[str, _Layer]:
    layers = {}
    for parameter in manifest.parameters:
        name, _, last = parameter.name.rpartition(".")
        if last == "weight" and parameter.kind in TRANSPOSED and parameter.tied_to is None:
            shape = parameter.shape[::-1] if TRANSPOSED[parameter.kind] else parameter.shape
            layers[name] = _Layer(parameter.kind, *shape)
    return layers


def _check(deltas: Mapping[str, LowRank], layers: Mapping[str, _Layer]) -> None:
    problems = [f"{name} is no untied layer of the base" for name in deltas if name not in layers]
    for name in deltas.keys() & layers.keys():
        expected = layers[name].out_features, layers[name].in_features
        if deltas[name].shape != expected:
            problems.append(f"{name} has a delta {list(deltas[name].shape)}, expected {list(expected)}")
    if problems:
        raise Invalid(f"the chain does not fit the base: {listed(sorted(problems))}")


def _padded(delta: LowRank | None, rank: int, layer: _Layer, dtype: torch.dtype) -> LowRank:
    a = torch.zeros(rank, layer.in_features, dtype=dtype)
    b = torch.zeros(layer.out_features, rank, dtype=dtype)
    if delta is not None:
        a[: delta.rank] = delta.a
        b[:, : delta.rank] = delta.b
    return LowRank(a, b)


def _anywhere(name: str) -> str:
    return _NUMBER.sub("*", name)


def _siblings(name: str) -> list[str]:
    parent, dot, last = name.rpartition(".")
    family = next((family for family in SIBLINGS if last in family), (last,))
    return [f"{parent}{dot}{sibling}" for sibling in family]


def _endings(name: str) -> list[str]:
    segments = name.split(".")
    return [".".join(segments[start:]) for start in range(len(segments))]


def _enclosing(parameter: str) -> list[str]:
    segments = parameter.split(".")[:-1]
    return [".".join(segments[:count]) for count in range(1, len(segments) + 1)]


def _config(rank: int, kinds: set[str], targets: list[str] | str, task: str | None, base_model: str) -> dict[str, Any]:
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": base_model,
        "bias": "none",
        # PEFT goes by each layer's own type; engines that do not read the flag as they find it.
        "fan_in_fan_out": any(TRANSPOSED[kind] for kind in kinds),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": targets,
        "task_type": task,
        "use_dora": False,
        "use_rslora": False,
    }
