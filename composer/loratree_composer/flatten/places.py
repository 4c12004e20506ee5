"""The places of a flattened adapter's LoRAs: the deltas, and the layers that are filled with zeros beside them."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from loratree_composer.adapters.adapter import Adapter, Factors
from loratree_composer.base.layer_kind import TRANSPOSED
from loratree_composer.flatten.parts import REMEDY, FlatParts
from loratree_composer.flatten.peft_place import LoraPlace, find_place
from loratree_composer.flatten.targets import with_siblings
from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.layout import ATTENTION, CONVOLUTIONS
from loratree_registry.peft_format.names import BaseIndex, module_of
from loratree_registry.peft_format.rules import is_by_parameter

# module → for each level, its parameters that have LoRAs, innermost first
Nesting = Mapping[str, Sequence[Sequence[str]]]


def flat_places(parts: FlatParts, base: BaseIndex, nested: Nesting) -> dict[str, LoraPlace]:
    """Return the place of each LoRA by the base's tensor, with the LoRAs that hold only zeros or only a bias.

    Raises Invalid, listing every delta that has no place in the base or in PEFT.
    """
    places, problems = {}, []
    for name in _list_tensors(parts, base):
        delta = parts.deltas.get(name)
        inputs = 0 if delta is None else delta.shape[-1]
        lora = find_place(base, name, depth=_find_depth(name, parts.deltas, base, nested), inputs=inputs)
        if lora is None:
            problems.append(f"{name} is no weight of a layer that PEFT puts a LoRA on")
        elif delta is not None and (problem := _find_misfit(lora, lora.as_peft(delta).shape)):
            problems.append(f"{name} {problem}")
        else:
            places[name] = lora
    if problems:
        raise Invalid(f"the chain does not fit the base: {listed(sorted(problems), limit=5)}")
    if parts.shifts and (without := sorted(place.name for place in places.values() if not _can_take_bias(place, base))):
        raise Invalid(
            "PEFT adds to the biases of all modules of an adapter or of none (lora_bias), and it can add to none of "
            f"{listed(without, limit=3)}: {REMEDY}"
        )
    return places


def nesting(chain: Iterable[tuple[Adapter, float]]) -> Nesting:
    """Return the order in which PEFT nested the LoRAs on experts, in each level."""
    orders: dict[str, list[list[str]]] = defaultdict(list)
    for adapter, _ in chain:
        depths: dict[str, dict[str, int]] = defaultdict(dict)
        for name, parts in adapter.parts.items():
            for part in parts:
                if isinstance(part, Factors) and is_by_parameter(part.kind):
                    depths[module_of(name)][name] = part.depth
        for module, known in depths.items():
            orders[module].append(sorted(known, key=known.__getitem__, reverse=True))
    return orders


def _list_tensors(parts: FlatParts, base: BaseIndex) -> list[str]:
    """Return the tensors that get factors: with a delta, with a shifted bias, or with zeros beside these.

    Engines expect the sibling layers (k beside q) in every numbered layer; PEFT expects both weights of an attention.
    """
    names = parts.deltas.keys() | {f"{module_of(name)}.weight" for name in parts.shifts}
    kinds = {name: base.parameters[name].kind for name in names if name in base.parameters}
    matrices = {module_of(name) for name, kind in kinds.items() if kind in TRANSPOSED}
    fillable = [module for module in base.kinds if _is_fillable(module, parts, base)]
    names |= {f"{module}.weight" for module in with_siblings(matrices, fillable)}
    for name in list(names):
        for module in (module_of(name), module_of(module_of(name))):
            if base.kinds.get(module) == ATTENTION:
                names |= {f"{module}.in_proj_weight", f"{module}.out_proj.weight"}
    return sorted(names)


def _is_fillable(module: str, parts: FlatParts, base: BaseIndex) -> bool:
    weight = base.parameters.get(f"{module}.weight")
    if weight is None or weight.kind not in TRANSPOSED or weight.tied_to is not None:
        return False
    if parts.shifts and f"{module}.bias" not in base.parameters:
        return False
    return weight.name not in parts.values and not base.is_read_past_forward(module)


def _find_misfit(lora: LoraPlace, shape: tuple[int, ...]) -> str | None:
    layout = lora.layout(lora.groups)
    matrix = layout.out_features, layout.in_features
    expected = (layout.experts, *matrix) if len(shape) == 3 else matrix
    return None if shape == expected else f"has a delta {list(shape)}, expected {list(expected)}"


def _can_take_bias(lora: LoraPlace, base: BaseIndex) -> bool:
    return lora.kind in (*TRANSPOSED, *CONVOLUTIONS) and f"{lora.name}.bias" in base.parameters


def _find_depth(name: str, deltas: Collection[str], base: BaseIndex, nested: Nesting) -> int:
    """Return how many LoRAs PEFT wraps around the LoRA on a parameter of experts."""
    module = module_of(name)
    wanted = {other for other in deltas if module_of(other) == module}
    if not is_by_parameter(base.kinds.get(module, "")) or len(wanted) < 2:
        return 0
    for known in nested.get(module, ()):
        if wanted <= set(known):
            order = [other for other in known if other in wanted]
            return len(order) - 1 - order.index(name)
    raise Invalid(
        f"no level of the chain is on all of {listed(sorted(wanted))}, so PEFT's nesting order is not known: {REMEDY}"
    )
