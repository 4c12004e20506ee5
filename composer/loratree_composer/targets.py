"""The layers of a live module that deltas apply to."""

from collections.abc import Collection, Mapping

from torch import nn

from loratree_composer.layer_kind import TRANSPOSED, kind_of
from loratree_composer.lowrank import LowRank
from loratree_composer.sharing import sharers
from loratree_registry.errors import Invalid, listed


def target_layers(module: nn.Module, deltas: Mapping[str, LowRank]) -> dict[str, nn.Module]:
    """The layer of each delta, by name. Raises Invalid listing every name that is missing, of another kind or shape."""
    layers, problems = {}, []
    for name, delta in deltas.items():
        layer = _layer(module, name)
        problem = "is not in the model" if layer is None else _problem(layer, delta)
        if problem:
            problems.append(f"{name} {problem}")
        elif layer is not None:
            layers[name] = layer
    if problems:
        raise Invalid(f"the adapter does not fit the model: {listed(problems)}")
    return layers


def check_unshared(module: nn.Module, names: Collection[str]) -> None:
    """Refuses to edit a weight that other names of the module share. Raises Invalid listing them."""
    shared = sharers(module, {f"{name}.weight" for name in names})
    if shared:
        problems = [f"{name} with {', '.join(others)}" for name, others in sorted(shared.items())]
        raise Invalid(
            f"merging would also change what shares its memory: {listed(problems)}; stack the composition instead, or "
            "publish an adapter without these modules"
        )


def is_transposed(layer: nn.Module) -> bool:
    """Tells whether the layer keeps its weight as [in, out]."""
    return TRANSPOSED[kind_of(layer)]


def _layer(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def _problem(layer: nn.Module, delta: LowRank) -> str | None:
    kind, weight = kind_of(layer), getattr(layer, "weight", None)
    if kind not in TRANSPOSED or weight is None:
        return f"is a {kind}, and only {' and '.join(TRANSPOSED)} are composed"
    expected = delta.shape[::-1] if TRANSPOSED[kind] else delta.shape
    if tuple(weight.shape) != expected:
        return f"has a weight {list(weight.shape)} and the delta needs {list(expected)}"
    return None
