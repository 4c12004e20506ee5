"""One composition in four forms, and the differences between their logits; torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

import torch

from loratree_cli.demo.agreement import Agreement
from loratree_cli.demo.reference import reference_logits
from loratree_cli.demo.training import load_model
from loratree_registry.core.registry import Registry

MERGED: Final = "merged"
STACKED: Final = "stacked"
FLATTENED: Final = "flattened in PEFT"
REFERENCE: Final = "float64 reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The sources of the forms of one composition: `ref` in the registry, and the folders written from it."""

    ref: str
    base: Path
    adapters: Sequence[Path]
    merged: Path
    flattened: Path
    home: Path


@torch.inference_mode()
def compare(places: Places, registry: Registry, ids: torch.Tensor) -> Agreement:
    """Measure how far each pair of forms is apart on `ids` [batch, length]."""
    logits = all_logits(places, registry, ids)
    bare = load_model(places.base)(input_ids=ids).logits
    largest = logits[REFERENCE].abs().max()

    def apart(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).abs().max() / largest)

    pairs = combinations(logits.items(), 2)
    return Agreement(tuple((one, other, apart(a, b)) for (one, a), (other, b) in pairs), apart(logits[MERGED], bare))


def all_logits(places: Places, registry: Registry, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute each form's logits [batch, length, vocabulary], in float64 so that the comparison rounds nothing."""
    from peft import PeftModel

    merged = load_model(places.merged)
    flattened = PeftModel.from_pretrained(load_model(places.base), str(places.flattened))
    logits = {
        MERGED: merged(input_ids=ids).logits,
        STACKED: stacked_logits(places, registry, ids),
        FLATTENED: flattened(input_ids=ids).logits,
        REFERENCE: reference_logits(places.base, places.adapters, ids),
    }
    return {form: tensor.double() for form, tensor in logits.items()}


def stacked_logits(places: Places, registry: Registry, ids: torch.Tensor) -> torch.Tensor:
    """Compute the logits of the base with the chain stacked by the Composer, the base's weights unchanged."""
    from loratree_composer.composer import Composer

    model = load_model(places.base)
    Composer(model, registry, home=places.home).use(places.ref)
    logits: torch.Tensor = model(input_ids=ids).logits
    return logits
