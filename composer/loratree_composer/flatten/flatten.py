"""A chain as one PEFT adapter of rank Σr. Engines load it too if it has only deltas of linear layers and embeddings."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import lcm
from typing import Any, Final

import torch
from torch import Tensor

from loratree_composer.adapters.adapter import Adapter, Bias, Factors, programs_of
from loratree_composer.arithmetic.compress import Compressed, compressed
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.base.layer_kind import TRANSPOSED
from loratree_composer.base.stored_tensor import DTYPES, type_of
from loratree_composer.flatten.compression import Kept, records_of
from loratree_composer.flatten.overrides import flat_overrides, heads_of
from loratree_composer.flatten.parts import REMEDY, flat_parts
from loratree_composer.flatten.peft_place import LoraPlace
from loratree_composer.flatten.places import flat_places, nesting
from loratree_composer.flatten.targets import target_modules
from loratree_registry.core.chain import Limit
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.progress import Counter, Progress, silent
from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.classify import classify
from loratree_registry.peft_format.names import BaseIndex
from loratree_registry.tensor_files.header import Header
from loratree_registry.tensor_files.header import Tensor as Stored

DUMMY: Final = "dummy-target-modules"  # PEFT's own value for no module at all


@dataclass(frozen=True, slots=True, eq=False)
class FlatAdapter:
    """A document for adapter_config.json, the tensors of adapter_model.safetensors, and their one dtype.

    `kept` says what a limit left of each module; it is empty without a limit.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    dtype: torch.dtype
    kept: tuple[Kept, ...] = ()


def flattened(
    chain: Sequence[tuple[Adapter, float]],
    manifest: BaseManifest,
    *,
    base_model: str | None,
    limit: Limit | None = None,
    progress: Progress = silent,
) -> FlatAdapter:
    """Return one PEFT LoRA with the effect of all (adapter, level weight) from root to leaf, without the base's values.

    It adds Σ wᵢsᵢBᵢAᵢ: α = r, every module padded with zeros to one rank, every scale folded into B in float32. The
    factors are written in the smallest dtype that holds the factors of every level, or in float32 if that dtype does
    not hold the folded factors bit for bit. A module's missing layers, and missing siblings of q, k, v and of gate, up,
    are filled with zeros, because some engines otherwise drop the layer type. The task_type is the one that all levels
    share; it is null if they differ, or if PEFT would expect a head for it that no level has trained, such as `score`
    for SEQ_CLS. `base_model` is written as base_model_name_or_path: where the base
    came from, or None, because the registry's name for it is no place.

    Engines load deltas of linear layers and of embeddings. PEFT alone loads the rest: convolutions, attention and
    experts; lora_bias, on all modules or none; the composed values of modules_to_save and of biases, and rows.

    `limit` truncates each module's sum; r is then the highest remaining rank, at most the limit's rank.

    Raises Invalid if there are no deltas, if one adapter cannot hold the chain (as with DoRA), if the chain does not
    fit the base, or if a value is not finite.
    """
    dtypes = {parameter.name: DTYPES[parameter.dtype] for parameter in manifest.parameters}
    programs, base = programs_of(chain), BaseIndex(manifest)
    parts = flat_parts(programs, dtypes, on_done=Counter(progress, "summing the levels", len(programs), "modules").add)
    if not parts.names:
        raise Invalid(f"there is no adapter to flatten, the composition is the base itself: {REMEDY}")
    places = flat_places(parts, base, nesting(chain))
    deltas = {place.name: place.as_peft(parts.deltas[name]) for name, place in places.items() if name in parts.deltas}
    cut = _compress(deltas, places, limit, progress)
    deltas |= {name: module.delta for name, module in cut.items()}
    task = task_type(chain)
    heads = heads_of(task, parts.values, base)
    overrides = flat_overrides(parts, base, {place.name for place in places.values()}, heads or ())
    factors = [factor for delta in deltas.values() for factor in (delta.a, delta.b)]
    dtype = choose_dtype([*factors, *parts.shifts.values()], common_dtype(_find_dtypes(chain)))
    tensors = _build_tensors(places, deltas, parts.shifts, _find_rank(places, deltas), dtype)
    config = _build_config(
        _find_rank(places, deltas), places, manifest, task if heads is not None else None, base_model
    )
    config |= ({"lora_bias": True} if parts.shifts else {}) | overrides.config
    flat = FlatAdapter(config, tensors | overrides.tensors, dtype, records_of(cut))
    keys = {(name, place.keys[0]) for name, place in places.items()} | overrides.keys.items()
    _check_readable(flat, manifest, keys)
    return flat


def choose_dtype(factors: Collection[Tensor], dtype: torch.dtype) -> torch.dtype:
    """Return `dtype` if it holds every factor bit for bit, else the dtype that the factors are summed in."""
    if all(torch.equal(factor.to(dtype).to(factor.dtype), factor) for factor in factors):
        return dtype
    return common_dtype({factor.dtype for factor in factors})


def task_type(chain: Sequence[tuple[Adapter, float]]) -> str | None:
    """Return the task_type that every level's config has, or None if they differ or have none."""
    tasks = {adapter.task_type for adapter, _ in chain}
    return tasks.pop() if len(tasks) == 1 else None


def common_dtype(dtypes: Collection[torch.dtype]) -> torch.dtype:
    """Return the smallest dtype that holds the values of all: float32 for float16 with bfloat16, and for no dtype."""
    return reduce(torch.promote_types, dtypes or {torch.float32})


def _find_dtypes(chain: Sequence[tuple[Adapter, float]]) -> set[torch.dtype]:
    """Return the dtypes that the levels' factors are stored in."""
    parts = (part for adapter, _ in chain for parts in adapter.parts.values() for part in parts)
    added = (part for part in parts if isinstance(part, Factors | Bias))
    return {(part.a if isinstance(part, Factors) else part.value).dtype for part in added}


def _compress(
    deltas: Mapping[str, LowRank], places: Mapping[str, LoraPlace], limit: Limit | None, progress: Progress
) -> dict[str, Compressed]:
    grouped = sorted(place.name for place in places.values() if place.groups > 1)
    if limit is not None and grouped:
        raise Invalid(
            f"{listed(grouped, limit=3)} is a convolution in groups, and its delta is not a matrix that can be "
            "truncated: flatten without a limit"
        )
    if limit is not None and limit.rank is not None and deltas:
        highest = max(min(delta.shape[-2:]) for delta in deltas.values())
        if limit.rank > highest:
            raise Invalid(
                f"no layer that the chain changes is of a size for rank {limit.rank}: compress to a rank of at most "
                f"{highest}, or leave the limit out"
            )
    if limit is None:
        return {}
    return compressed(deltas, limit, on_done=Counter(progress, "truncating", len(deltas), "modules").add)


def _find_rank(places: Mapping[str, LoraPlace], deltas: Mapping[str, LowRank]) -> int:
    """Return the rank of every module: the highest, rounded up to a multiple of every convolution's groups."""
    highest = max((delta.rank for delta in deltas.values()), default=1)
    groups = lcm(*(place.groups for place in places.values()))
    return -(-highest // groups) * groups


def _build_tensors(
    places: Mapping[str, LoraPlace],
    deltas: Mapping[str, LowRank],
    shifts: Mapping[str, Tensor],
    rank: int,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Return every factor, and every shift if there are any, by key. Raises Invalid if a value is not finite."""
    tensors: dict[str, Tensor] = {}
    for _, place in sorted(places.items()):
        tensors |= place.tensors(deltas.get(place.name), rank, dtype)
        if shifts:
            shift = shifts.get(f"{place.name}.bias")
            out = place.layout(rank).out_features
            tensors[place.bias] = torch.zeros(out, dtype=dtype) if shift is None else shift.to(dtype)
    overflown = sorted(key for key, tensor in tensors.items() if not tensor.isfinite().all())
    if overflown:
        raise Invalid(
            f"folding the scales and level weights overflows {dtype} in {listed(overflown, limit=3)}: take smaller "
            "level weights, or train with a smaller lora_alpha"
        )
    return tensors


def _check_readable(flat: FlatAdapter, manifest: BaseManifest, expected: set[tuple[str, str]]) -> None:
    """Check that the adapter, classified as when it is published, has exactly the `expected` (parameter, key) pairs."""
    stored = {key: type_of(tensor) for key, tensor in flat.tensors.items()}
    header = Header({key: Stored(kind.dtype, kind.shape, 0, 0) for key, kind in stored.items()}, {}, 0, 0, b"")
    try:
        spec = classify(flat.config, header, manifest)
    except Invalid as error:
        raise Invalid(f"one adapter cannot hold what the chain does ({error}): {REMEDY}") from error
    actual = {(module.parameter, module.a) for module in spec.modules}
    actual |= {(value.parameter, value.key) for value in spec.values} | {(row.parameter, row.key) for row in spec.rows}
    if wrong := sorted({name for name, _ in actual ^ expected}):
        raise Invalid(
            f"one adapter cannot hold the chain, as PEFT would change {listed(wrong, limit=3)} otherwise: {REMEDY}"
        )


def _build_config(
    rank: int, places: Mapping[str, LoraPlace], manifest: BaseManifest, task: str | None, base_model: str | None
) -> dict[str, Any]:
    modules = {place.target for place in places.values() if not place.by_parameter}
    parameters = sorted(place.target for place in places.values() if place.by_parameter)
    nothing = [] if parameters else DUMMY
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": base_model,
        "bias": "none",
        # PEFT uses each layer's own type instead; other engines rely on this flag.
        "fan_in_fan_out": any(TRANSPOSED.get(place.kind, False) for place in places.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {},
        "target_modules": target_modules(modules, manifest) if modules else nothing,
        "task_type": task,
        "use_dora": False,
        "use_rslora": False,
    } | ({"target_parameters": parameters} if parameters else {})
