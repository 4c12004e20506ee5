"""LoRAs on each expert's own layers, joined as PEFT joins them; standard library only.

Transformers 4 kept a Linear layer for each expert, and transformers 5 keeps the weights of all experts in one tensor.
PEFT turns an adapter of such layers into one on target_parameters when it loads it, and changes its config for that
(utils/transformers_weight_conversion.py of PEFT 0.21.2). It does both right for some adapters only: it leaves a part of
the others out, or scales it otherwise than it was trained, without a word. Those are refused.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from loratree_registry.errors import Invalid
from loratree_registry.peft_format.layout import EXPERTS
from loratree_registry.peft_format.names import LAYER, PREFIX, BaseIndex, base_name, module_of
from loratree_registry.peft_format.rules import (
    BESIDE_EXPERTS,
    EXPERT_EXTRAS,
    EXPERT_SCALES,
    HIDDEN_EXPERTS,
    LOST_EXPERTS,
    SOME_EXPERTS,
    UNRECORDED_EXPERTS,
)
from loratree_registry.peft_format.saved_adapter import SavedAdapter
from loratree_registry.peft_format.scaling import read_scaling
from loratree_registry.peft_format.spec import Joined
from loratree_registry.peft_format.targets import TargetModules
from loratree_registry.tensor_files.header import ZEROS, Tensor

_PART: Final = re.compile(r"(.+)\.(lora_.+)")  # a LoRA's layer, and what of the LoRA a tensor is
_EXPERT: Final = re.compile(r"(.+)\.(\d{1,6})\.([^.]+)")
_A: Final = "lora_A.weight"
_FACTORS: Final = (_A, "lora_B.weight")
_INNER: Final = "gate_up_proj"  # PEFT puts the LoRA of this tensor of experts inside that of _OUTER
_OUTER: Final = "down_proj"
_ROUTER: Final = {"gate": "gate.weight"}  # PEFT reads a LoRA on this layer as one on its parameter

_Parts = dict[tuple[str, str], dict[tuple[str, int], str]]  # tensor of experts and ending → layer and expert → key


def with_joined_experts(saved: SavedAdapter) -> SavedAdapter:
    """Return the adapter as PEFT reads it on this base: with joined tensors, and the config that belongs to them.

    It is `saved` itself if PEFT changes nothing. What PEFT cannot join, or joins wrongly, is recorded as a problem.
    """
    layers = {match[1] for key in saved.tensors if (match := _PART.fullmatch(key.removeprefix(PREFIX)))}
    (parts, lost), targets = _sort_parts(saved), _targets_of(saved.base)
    beside = [layer for layer in sorted(layers) if _is_beside(saved.base, layer, targets)]
    if not (parts or lost or beside or _named(saved.config.get("target_modules"), targets)):
        return saved
    for layer in beside:
        saved.findings.refuse(BESIDE_EXPERTS, layer)
    config = _convert_config(saved, targets, layers)
    tensors, digests = dict(saved.tensors), dict(saved.digests or {})
    joined: dict[str, Joined] = {}
    partial: set[str] = set()
    for (parameter, ending), keys in parts.items():
        whole = _join(saved, parameter, keys) if _has_outer(parts, parameter, ending) else None
        if whole is None:
            partial.add(parameter)
        else:
            key = PREFIX + module_of(parameter) + (f".{LAYER}" if parameter.endswith(_INNER) else "") + f".{ending}"
            joined[key], tensors[key] = whole, _joined_tensor(saved, whole, ending)
            if all(digests.get(part) == ZEROS for part in keys.values()):
                digests[key] = ZEROS
        lost += keys.values()
    for key in lost:
        del tensors[key]
    for parameter in sorted(partial):
        saved.findings.refuse(SOME_EXPERTS, parameter)
    _check_scales(saved, config, {parameter for parameter, _ in parts})
    digested = None if saved.digests is None else digests
    return replace(saved, config=config, tensors=tensors, digests=digested, joined=joined)


def _sort_parts(saved: SavedAdapter) -> tuple[_Parts, list[str]]:
    """Return the keys of the factors on layers of single experts, and of what cannot be joined, which is recorded."""
    tensors = {layer: name for name, layers in (saved.base.expert_layers or {}).items() for layer in layers}
    has_experts = not set(EXPERTS).isdisjoint(saved.base.kinds.values())
    parts: _Parts = defaultdict(dict)
    lost: list[str] = []
    for key in saved.tensors:
        part = _PART.fullmatch(key.removeprefix(PREFIX))
        expert = _EXPERT.fullmatch(part[1]) if part else None
        if part is None or expert is None or base_name(part[1], saved.base.kinds) is not None:
            continue
        layer = f"{expert[1]}.*.{expert[3]}"
        if layer in tensors and part[2] in _FACTORS and str(int(expert[2])) == expert[2]:
            parts[tensors[layer], part[2]][layer, int(expert[2])] = key
        elif layer in tensors:
            saved.findings.refuse(EXPERT_EXTRAS, key)
            lost.append(key)
        elif has_experts and _leaf(expert[1]) == "experts":
            is_recorded = saved.base.expert_layers is not None
            if part[2] == _A:
                saved.findings.refuse(LOST_EXPERTS if is_recorded else UNRECORDED_EXPERTS, part[1])
            lost.append(key)
    return dict(sorted(parts.items())), lost


def _targets_of(base: BaseIndex) -> dict[str, str]:
    """Map the layers' names in target_modules to the parameters' names in target_parameters that PEFT makes of them."""
    layers = base.expert_layers or {}
    targets = {_leaf(layer): _leaf(parameter) for parameter, names in layers.items() for layer in names}
    return targets | _ROUTER if targets else {}


def _named(target_modules: object, targets: Mapping[str, str]) -> set[str]:
    """Return the layers' names that a list of target_modules names."""
    names = target_modules if isinstance(target_modules, list) else []
    return {_leaf(name) for name in names if isinstance(name, str) and _leaf(name) in targets}


def _is_beside(base: BaseIndex, layer: str, targets: Mapping[str, str]) -> bool:
    """Return whether a layer that is no expert's has the name of one, such as a shared expert's."""
    known = base_name(layer, base.kinds)
    return known is not None and _leaf(known.name) in targets.keys() - _ROUTER.keys()


def _convert_config(saved: SavedAdapter, targets: Mapping[str, str], layers: set[str]) -> dict[str, Any]:
    """Return the config that PEFT makes: target_parameters, and the rank and alpha of a joined LoRA as patterns."""
    config = dict(saved.config)
    modules = config.get("target_modules")
    named = _named(modules, targets)
    if isinstance(modules, list):
        config["target_modules"] = [name for name in modules if not (isinstance(name, str) and _leaf(name) in named)]
    else:
        named = _resolve_expression(saved, targets)
        for layer in sorted(layers):
            if ".experts." in layer and _leaf(layer) in targets.keys() - named:
                saved.findings.refuse(HIDDEN_EXPERTS, layer)
    config["target_parameters"] = sorted({*saved.names("target_parameters"), *(targets[name] for name in named)})
    for joined in sorted(set(targets.values())):
        sources = {name for name, target in targets.items() if target == joined}
        if sources & named and sources - named:
            saved.findings.refuse(SOME_EXPERTS, f"target_modules without {', '.join(sorted(sources - named))}")
        elif sources <= named and len(sources) > 1:
            for field, setting in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
                value, pattern = config.get(setting, 8), config.get(field) or {}
                if type(value) in (int, float) and isinstance(pattern, dict):
                    config[field] = pattern | {rf".*\.{re.escape(joined)}": value * len(sources)}
    return config


def _resolve_expression(saved: SavedAdapter, targets: Mapping[str, str]) -> set[str]:
    """Return the layers' names that PEFT finds by a target_modules that is one text.

    PEFT tries a regular expression on the present names, and on each old name beside the tensor that holds it now; a
    name with an expert's number is none of them.
    """
    try:
        chosen = TargetModules(saved.config)
    except Invalid:  # which is recorded when the other modules are checked
        return set(targets)
    if chosen.is_all_linear:
        return set(targets)
    base = saved.base
    found = {_leaf(name) for name in (*base.kinds, *base.parameters) if chosen.includes(name)} & targets.keys()
    places = {(module_of(name), _leaf(name)) for name in base.expert_layers or {}}
    tried = ((old, f"{at}.{old}") for old, new in targets.items() for at, leaf in places if leaf == new)
    return found | {old for old, name in tried if chosen.includes(name)}


def _has_outer(parts: _Parts, parameter: str, ending: str) -> bool:
    return not parameter.endswith(_INNER) or (f"{module_of(parameter)}.{_OUTER}", ending) in parts


def _join(saved: SavedAdapter, parameter: str, keys: Mapping[tuple[str, int], str]) -> Joined | None:
    """Return the keys of one joined tensor, by layer and expert, or None if they are not all there and alike."""
    experts, layers = saved.base.parameters[parameter].shape[0], (saved.base.expert_layers or {})[parameter]
    alike = {(saved.tensors[key].dtype, saved.tensors[key].shape) for key in keys.values()}
    places = [[(layer, number) for number in range(experts)] for layer in layers]
    if len(alike) != 1 or len(next(iter(alike))[1]) != 2 or keys.keys() != {place for row in places for place in row}:
        return None
    return tuple(tuple(keys[place] for place in row) for row in places)


def _joined_tensor(saved: SavedAdapter, joined: Joined, ending: str) -> Tensor:
    """Return the form of a joined A [experts · rank, in] or B [out, rank · experts], with the rank of all layers."""
    first, layers, experts = saved.tensors[joined[0][0]], len(joined), len(joined[0])
    rows, columns = first.shape
    shape = (experts * layers * rows, columns) if ending == _A else (layers * rows, layers * columns * experts)
    return replace(first, shape=shape)


def _check_scales(saved: SavedAdapter, config: Mapping[str, Any], parameters: set[str]) -> None:
    """Record each tensor of experts whose LoRA gets another scale from PEFT's config than from the one in the file."""
    try:
        trained, joined = read_scaling(saved.config), read_scaling(config)
        for parameter in sorted(parameters):
            experts, layers = saved.base.parameters[parameter].shape[0], (saved.base.expert_layers or {})[parameter]
            names = (layer.replace("*", str(number)) for layer in layers for number in range(experts))
            if {trained.scale(name) for name in names} != {joined.scale(parameter)}:
                saved.findings.refuse(EXPERT_SCALES, parameter)
    except Invalid as error:
        saved.findings.add(str(error))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
