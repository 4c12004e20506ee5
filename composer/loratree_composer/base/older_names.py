"""The names that modules had before transformers renamed them, and whether PEFT knows them in an adapter's file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import nn

# The tensors of experts that PEFT joins LoRAs for, and the families whose config it converts for them. A model of
# another type belongs to the family of which transformers uses the conversions.
_EXPERTS: Final = (".experts.gate_up_proj", ".experts.down_proj")
_FAMILIES: Final = ("mixtral", "qwen2_moe")


@dataclass(slots=True)
class OlderNames:
    """Older names of modules, and the present ones: `known` are those that PEFT renames when it loads an adapter.

    `experts` maps a tensor with a matrix for each expert to the layers that each expert had (`expert_layers` of the
    manifest), if PEFT joins LoRAs on them.
    """

    known: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    experts: dict[str, list[str]] = field(default_factory=dict)


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
    joins = is_in_peft and _joins_experts(model.config.model_type)
    present = {name.rpartition(".")[0] for name in model.state_dict()}
    for name in model.state_dict():
        older, pattern = rename_source_key(name, renamings, converters, reverse=True)
        if pattern is not None and joins and name.endswith(_EXPERTS) and model.get_parameter(name).ndim == 3:
            ends = next(entry.target_patterns for entry in converters if pattern in entry.source_patterns)
            layers = [older.removesuffix(ends[0]) + end for end in ends]
            names.experts[name] = [layer.removesuffix(".weight") for layer in layers]
        if pattern is not None:
            continue
        # A release between two renamings had the names with only one of them.
        between = {rename_source_key(name, [entry], [], reverse=True)[0] for entry in renamings}
        for old_name in sorted({older, *between}):
            old, new = old_name.rpartition(".")[0], name.rpartition(".")[0]
            if old == new or old in present:
                continue
            key = f"base_model.model.{old_name}"
            read, _ = rename_source_key(key, forward, [])
            # PEFT undoes a renaming that only removes what is before the name, and then leaves the tensor out.
            is_read = is_in_peft and read == name and not key.endswith(name)
            (names.known if is_read else names.unknown)[old] = new
    names.unknown = {old: new for old, new in names.unknown.items() if old not in names.known}
    return names


def _joins_experts(model_type: str) -> bool:
    """Return whether PEFT joins LoRAs on the layers of single experts: for Mixtral, and not for Qwen2-MoE."""
    from transformers import conversion_mapping

    families: Mapping[str, str] = {
        **getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {}),
        "mixtral": "mixtral",
    }
    return families.get(model_type) in _FAMILIES
