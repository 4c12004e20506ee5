"""The whole values and the rows of a flattened adapter: their keys in PEFT's file and their fields in its config."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from loratree_composer.flatten.parts import REMEDY, FlatParts
from loratree_composer.flatten.targets import list_enclosing
from loratree_registry.errors import Invalid, listed
from loratree_registry.peft_format.names import LAYER, PREFIX, BaseIndex, module_of
from loratree_registry.peft_format.overrides import implied_modules
from loratree_registry.peft_format.tensors import ROWS

CONTAINERS: Final = ("ParameterList", "ParameterDict")
PARAMETRIZATIONS: Final = "parametrizations"  # torch's child of a layer; the layer's weight is computed from it


@dataclass(frozen=True, slots=True, eq=False)
class FlatOverrides:
    """The file's tensors by key, the keys by the base's tensor names, and the fields of the config."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def heads_of(task: str | None, values: Collection[str], base: BaseIndex) -> list[str] | None:
    """Return the modules of the base that PEFT saves for a task_type; None if the values do not hold all of them."""
    ends = implied_modules(task)
    modules = {module for name in base.parameters for module in list_enclosing(name)} if ends else ()
    heads = [module for module in sorted(modules) if module.endswith(ends)]
    return heads if all(name in values for name in base.parameters if within(name, heads)) else None


def flat_overrides(parts: FlatParts, base: BaseIndex, lora: Collection[str], heads: Sequence[str]) -> FlatOverrides:
    """Return the values and rows of `parts`, beside LoRAs on the modules `lora`. Raises Invalid if PEFT has no place.

    `heads` are modules that PEFT saves whole because of the task_type.

    Whole modules become modules_to_save. Other biases become bias="lora_only" if every bias is in a module with a LoRA,
    else bias="all", for which PEFT loads the biases that the file holds. Rows become trainable_token_indices.
    """
    overrides = FlatOverrides()
    saved = saved_modules(parts.values, base, heads)
    biases = {name for name in parts.values if not within(name, saved)}
    if saved:
        overrides.config["modules_to_save"] = saved
    if biases:
        overrides.config["bias"] = "lora_only" if all(module_of(name) in lora for name in biases) else "all"
    written: set[int] = set()
    for name in sorted(parts.values):
        overrides.keys[name] = PREFIX + (_wrap_name(name, lora) if name in biases else name)
        value = parts.values[name].contiguous()
        # Two tied names may share one tensor of a level's file, and safetensors refuses to write the same memory twice.
        is_shared = value.data_ptr() in written
        written.add(value.data_ptr())
        overrides.tensors[overrides.keys[name]] = value.clone() if is_shared else value
    for name in sorted(parts.rows):
        _add_rows(overrides, name, parts, base)
    _join_row_names(overrides.config, base)
    return overrides


def saved_modules(values: Collection[str], base: BaseIndex, heads: Sequence[str] = ()) -> list[str]:
    """Return the outermost modules that whole values replace, and `heads`; a bias alone replaces no module.

    Raises Invalid if a module is replaced only in part, or if a value is in no layer that PEFT can copy.
    """
    owners = {name: _find_layer(module_of(name), base) for name in values if not name.endswith(".bias")}
    if homeless := sorted(name for name, module in owners.items() if not module):
        raise Invalid(f"PEFT copies layers, and {listed(homeless, limit=3)} is of the model itself: {REMEDY}")
    modules = sorted({*owners.values(), *heads})
    missing = [name for name in base.parameters if within(name, modules) and name not in values]
    if missing:
        raise Invalid(f"PEFT replaces whole modules, and the chain leaves out {listed(missing, limit=3)}: {REMEDY}")
    return [module for module in modules if not within(module, modules)]


def _find_layer(module: str, base: BaseIndex) -> str:
    """Return the innermost layer at or above `module` that PEFT can copy: no container and no parametrization."""
    path = module.split(".")
    if PARAMETRIZATIONS in path:
        path = path[: path.index(PARAMETRIZATIONS)]
    while path and base.kinds.get(".".join(path)) in CONTAINERS:
        path.pop()
    return ".".join(path)


def within(name: str, modules: Collection[str]) -> bool:
    """Return whether `name` is inside one of the modules."""
    return any(name.startswith(f"{module}.") for module in modules)


def _add_rows(overrides: FlatOverrides, name: str, parts: FlatParts, base: BaseIndex) -> None:
    """Add the rows of a tensor. PEFT trains an embedding and the tensors tied to it on the same rows and values."""
    rows, values = parts.rows[name]
    sources = {
        f"{tied}.weight": f"{embedding}.weight" for embedding, names in base.token_ties().items() for tied in names
    }
    source = sources.get(name, name)
    if source != name and source in parts.rows:
        ids, others = parts.rows[source]
        if torch.equal(ids, rows) and torch.equal(others, values):
            overrides.keys[name] = _row_key(source)
            return
        if torch.equal(ids, rows):
            raise Invalid(f"PEFT ties these rows of {source} and {name}, and the chain makes them differ: {REMEDY}")
    if name in parts.deltas:
        raise Invalid(f"PEFT gives no order for rows of {name} that are replaced and a delta that is added: {REMEDY}")
    overrides.keys[name] = _row_key(name)
    overrides.tensors[overrides.keys[name]] = values
    overrides.config.setdefault("trainable_token_indices", {})[module_of(name)] = rows.tolist()


def _join_row_names(config: dict[str, Any], base: BaseIndex) -> None:
    """Choose modules that PEFT would skip by an ending that they share, if no other module has that ending.

    PEFT skips each full name of a tied module if several entries for tied modules have the same ids.
    """
    table: dict[str, list[int]] = config.get("trainable_token_indices", {})
    for tied in base.token_ties().values():
        names = [name for name in table if name in tied]
        if len(names) < 2 or any(table[name] != table[names[0]] for name in names):
            continue
        segments = [name.split(".") for name in names]
        for length in range(1, min(map(len, segments)) + 1):
            end = ".".join(segments[0][-length:])
            if {module for module in base.kinds if module.endswith(end)} == set(names):
                table[end] = table[names[0]]
                for name in names:
                    del table[name]
                break


def _row_key(parameter: str) -> str:
    return f"{PREFIX}{module_of(parameter)}{ROWS}"


def _wrap_name(name: str, lora: Collection[str]) -> str:
    """Return the name that a tensor has after PEFT has wrapped the modules `lora`."""
    segments, path = [], ""
    for segment in name.split("."):
        segments.append(segment)
        path = f"{path}.{segment}" if path else segment
        if path in lora:
            segments.append(LAYER)
    return ".".join(segments)
