"""The whole values and the rows of a flattened adapter: their keys in PEFT's file, and what its config says of them."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from loratree_composer.flatten.parts import REMEDY, FlatParts
from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.base_index import BaseIndex, module_of
from loratree_registry.peft_format.names import LAYER, PREFIX
from loratree_registry.peft_format.tensors import ROWS

CONTAINERS: Final = ("ParameterList", "ParameterDict")
PARAMETRIZATIONS: Final = "parametrizations"  # torch's child of a layer that holds what its weight is computed from


@dataclass(frozen=True, slots=True, eq=False)
class FlatOverrides:
    """The tensors by key, the key of each of the base's tensors, and the fields of the config."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def flat_overrides(parts: FlatParts, base: BaseIndex, lora: Collection[str]) -> FlatOverrides:
    """The values and rows of `parts` beside LoRAs on the modules `lora`. Raises Invalid where PEFT has no place.

    Whole modules are modules_to_save. Biases beside them are bias="lora_only" where each is of a LoRA's own module,
    else "all", by which PEFT loads those that the file holds. Rows are trainable_token_indices.
    """
    found = FlatOverrides()
    saved = saved_modules(parts.values, base)
    biases = {name for name in parts.values if not within(name, saved)}
    if saved:
        found.config["modules_to_save"] = saved
    if biases:
        found.config["bias"] = "lora_only" if all(module_of(name) in lora for name in biases) else "all"
    written: set[int] = set()
    for name in sorted(parts.values):
        found.keys[name] = PREFIX + (_wrapped(name, lora) if name in biases else name)
        value = parts.values[name].contiguous()
        # One tensor of a level's file may be the value of two tied ones; safetensors writes no memory twice.
        is_shared = value.data_ptr() in written
        written.add(value.data_ptr())
        found.tensors[found.keys[name]] = value.clone() if is_shared else value
    for name in sorted(parts.rows):
        _add_rows(found, name, parts, base)
    return found


def saved_modules(values: Collection[str], base: BaseIndex) -> list[str]:
    """The modules that whole values are all of, outermost first; a bias that is replaced alone makes none.

    Raises Invalid where a module is replaced in part, or belongs to no layer that PEFT could copy.
    """
    found = {name: _layer(module_of(name), base) for name in values if not name.endswith(".bias")}
    if homeless := sorted(name for name, module in found.items() if not module):
        raise Invalid(f"PEFT copies layers, and {listed(homeless, limit=3)} is of the model itself: {REMEDY}")
    modules = sorted(set(found.values()))
    missing = [name for name in base.parameters if within(name, modules) and name not in values]
    if missing:
        raise Invalid(f"PEFT replaces whole modules, and the chain leaves {listed(missing, limit=3)}: {REMEDY}")
    return [module for module in modules if not within(module, modules)]


def _layer(module: str, base: BaseIndex) -> str:
    """The innermost layer at or above `module`: no container, which PEFT takes none of, and nothing inside a weight."""
    path = module.split(".")
    if PARAMETRIZATIONS in path:
        path = path[: path.index(PARAMETRIZATIONS)]
    while path and base.kinds.get(".".join(path)) in CONTAINERS:
        path.pop()
    return ".".join(path)


def within(name: str, modules: Collection[str]) -> bool:
    """Tells whether `name` is that of something inside one of the modules."""
    return any(name.startswith(f"{module}.") for module in modules)


def _add_rows(found: FlatOverrides, name: str, parts: FlatParts, base: BaseIndex) -> None:
    """Adds the rows of a tensor; PEFT trains those of an embedding together with all that is tied to it."""
    rows, values = parts.rows[name]
    source = base.source(name).name
    if source != name and source in parts.rows and base.parameters[source].kind == "Embedding":
        ids, others = parts.rows[source]
        if torch.equal(ids, rows) and torch.equal(others, values):
            found.keys[name] = _row_key(source)
            return
        if torch.equal(ids, rows):
            raise Invalid(f"PEFT ties these rows of {source} and {name}, and the chain has others for each: {REMEDY}")
    if name in parts.deltas:
        raise Invalid(f"PEFT gives no order for rows of {name} that are replaced and a delta that is added: {REMEDY}")
    found.keys[name] = _row_key(name)
    found.tensors[found.keys[name]] = values
    found.config.setdefault("trainable_token_indices", {})[module_of(name)] = rows.tolist()


def _row_key(parameter: str) -> str:
    return f"{PREFIX}{module_of(parameter)}{ROWS}"


def _wrapped(name: str, lora: Collection[str]) -> str:
    """The name of a tensor in a model whose modules `lora` are wrapped by PEFT."""
    found, path = [], ""
    for segment in name.split("."):
        found.append(segment)
        path = f"{path}.{segment}" if path else segment
        if path in lora:
            found.append(LAYER)
    return ".".join(found)
