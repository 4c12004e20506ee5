"""The names that modules had before transformers renamed them, and whether PEFT knows them in an adapter's file."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class OlderNames:
    """Older names of modules, and the present ones: `known` are those that PEFT renames when it loads an adapter."""

    known: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)


def older_names(model: nn.Module) -> OlderNames:
    """Return the older names of the modules of `model` that own parameters.

    Transformers keeps a table of renamings by architecture for checkpoints. PEFT applies the table to the keys of an
    adapter too, but only if it is kept under the model's own type (PEFT 0.21, utils/transformers_weight_conversion.py).
    """
    from transformers import PreTrainedModel

    names = OlderNames()
    if not isinstance(model, PreTrainedModel):
        return names
    from transformers import conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    tables: Any = conversion_mapping
    table = tables.get_model_conversion_mapping(model)
    forward = [entry for entry in table if isinstance(entry, WeightRenaming)]
    # As PEFT does before it renames: the prefix of its own wrapper goes first.
    forward = [WeightRenaming("base_model.model.model.", "model."), WeightRenaming("base_model.model.", ""), *forward]
    back = [
        entry.reverse_transform() for entry in reversed(tables.get_model_conversion_mapping(model, add_legacy=False))
    ]
    renamings = [entry for entry in back if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in back if isinstance(entry, WeightConverter)]
    is_in_peft = tables.get_checkpoint_conversion_mapping(model.config.model_type) is not None
    present = {name.rpartition(".")[0] for name in model.state_dict()}
    for name in model.state_dict():
        older, pattern = rename_source_key(name, renamings, converters, reverse=True)
        old, new = older.rpartition(".")[0], name.rpartition(".")[0]
        if pattern is not None or old == new or old in present:
            continue
        read, _ = rename_source_key(f"base_model.model.{older}", forward, [])
        (names.known if is_in_peft and read == name else names.unknown)[old] = new
    return names
