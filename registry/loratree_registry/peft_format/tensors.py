"""The tensors of an adapter's file, sorted by the part that each belongs to; standard library only."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from loratree_registry.peft_format.names import PREFIX, base_name
from loratree_registry.peft_format.rules import REFUSED_TENSORS, TRAINING_ONLY
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
# As the key of a magnitude is inside a model; PEFT reads it from a file too.
_OTHER_ENDINGS: Final = {".lora_magnitude_vector.weight": MAGNITUDE}


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """The keys of an adapter's tensors: a LoRA's in `layers` by name and ending, token rows in `rows` by module.

    `unread` lists the keys that only training reads. `rest` holds every other key by name: whole tensors of the base,
    and tensors that PEFT does not write.
    """

    layers: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    rows: dict[str, str] = field(default_factory=dict)
    rest: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def sorted_tensors(saved: SavedAdapter) -> AdapterTensors:
    """Sort every tensor of the file; record each one that is refused or lacks PEFT's prefix."""
    tensors = AdapterTensors()
    for key in saved.tensors:
        name = key.removeprefix(PREFIX)
        if name == key:
            saved.findings.add(f"tensor {key} does not start with {PREFIX}, as save_pretrained writes it")
            continue
        ending = _find_ending(saved, name)
        if ending == ROWS:
            tensors.rows[name.removesuffix(ROWS)] = key
        elif ending is not None:
            layer, standard = saved.base.present_layer(name.removesuffix(ending)), _OTHER_ENDINGS.get(ending, ending)
            part = tensors.layers[layer]
            if standard in part:
                saved.findings.add(f"tensors {part[standard]} and {key} are one part of LoRA, and only one can be read")
            part[standard] = key
        elif name.endswith(TRAINING_ONLY) and base_name(name, saved.base.parameters) is None:
            tensors.unread.append(key)
        elif not _is_refused(saved, name):
            tensors.rest[name] = key
    return tensors


def _find_ending(saved: SavedAdapter, name: str) -> str | None:
    """Return the ending of a LoRA's or a row's tensor, or None for a whole tensor even if its name ends like one."""
    ending = next((ending for ending in (*_ENDINGS, *_OTHER_ENDINGS) if name.endswith(ending)), None)
    if ending is None or base_name(name.removesuffix(ending), saved.base.kinds) is not None:
        return ending
    return None if base_name(name, saved.base.parameters) is not None else ending


def _is_refused(saved: SavedAdapter, name: str) -> bool:
    refusals = (refusal for ending, refusal in REFUSED_TENSORS.items() if name.endswith(ending))
    refusal = None if base_name(name, saved.base.parameters) is not None else next(refusals, None)
    if refusal is not None:
        saved.findings.refuse(refusal, PREFIX + name)
    return refusal is not None
