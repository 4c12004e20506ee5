"""The tensors of an adapter's file, sorted by what they are parts of; standard library only."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from loratree_registry.peft_format.names import PREFIX, base_name
from loratree_registry.peft_format.rules import REFUSED_TENSORS
from loratree_registry.peft_format.saved_adapter import SavedAdapter

A: Final = ".lora_A.weight"
B: Final = ".lora_B.weight"
EMBEDDING_A: Final = ".lora_embedding_A"
EMBEDDING_B: Final = ".lora_embedding_B"
MAGNITUDE: Final = ".lora_magnitude_vector"
BIAS: Final = ".lora_B.bias"
ROWS: Final = ".token_adapter.trainable_tokens_delta"
FACTORS: Final = (A, B, EMBEDDING_A, EMBEDDING_B)
_ENDINGS: Final = (*FACTORS, MAGNITUDE, BIAS, ROWS)


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """`layers` are the LoRAs by their names in the file, the key of each tensor by its ending; `rows` are token rows.

    `rest` are the keys of all else by their names: whole tensors of the base, or nothing that PEFT writes.
    """

    layers: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    rows: dict[str, str] = field(default_factory=dict)
    rest: dict[str, str] = field(default_factory=dict)


def sorted_tensors(saved: SavedAdapter) -> AdapterTensors:
    """Sorts every tensor of the file; notes those that are refused, and those without PEFT's prefix."""
    found = AdapterTensors()
    for key in saved.tensors:
        name = key.removeprefix(PREFIX)
        if name == key:
            saved.findings.add(f"tensor {key} does not start with {PREFIX}, as save_pretrained writes it")
            continue
        ending = _ending(saved, name)
        if ending == ROWS:
            found.rows[name.removesuffix(ROWS)] = key
        elif ending is not None:
            found.layers[name.removesuffix(ending)][ending] = key
        elif not _is_refused(saved, name):
            found.rest[name] = key
    return found


def _ending(saved: SavedAdapter, name: str) -> str | None:
    """How the tensor's name ends behind its module's; None for a whole tensor, whatever its module is called."""
    ending = next((ending for ending in _ENDINGS if name.endswith(ending)), None)
    if ending is None or base_name(name.removesuffix(ending), saved.base.kinds) is not None:
        return ending
    return None if base_name(name, saved.base.parameters) is not None else ending


def _is_refused(saved: SavedAdapter, name: str) -> bool:
    refusals = (refusal for ending, refusal in REFUSED_TENSORS.items() if name.endswith(ending))
    refusal = None if base_name(name, saved.base.parameters) is not None else next(refusals, None)
    if refusal is not None:
        saved.findings.refuse(refusal, PREFIX + name)
    return refusal is not None
