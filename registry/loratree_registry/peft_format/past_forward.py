"""Layers that a model does not call although it reads their weights; standard library only.

A model may multiply by a layer's weight directly, so that PEFT's wrapper never runs. A merged weight would
change the output, a LoRA would not, and the two forms would differ. A base's manifest marks such layers in their kind.
"""

from typing import Final

from loratree_registry.core.manifest import PAST_FORWARD
from loratree_registry.peft_format.names import BaseIndex

# Architecture → the layers that its head is given and does not call, for bases whose manifest has no marks of such
# layers: those that were recorded before loratree marked the layers of heads.
BY_ARCHITECTURE: Final[dict[str, tuple[str, ...]]] = {
    "DebertaForMaskedLM": ("word_embeddings",),
    "DebertaV2ForMaskedLM": ("word_embeddings",),
    "DiffusionGemmaForBlockDiffusion": ("embed_tokens",),
    "PerceiverForMaskedLM": ("embeddings",),
}


def is_read_past_forward(base: BaseIndex, module: str) -> bool:
    """Return whether the base's model reads the weight of the layer `module` without calling the layer."""
    if base.kinds.get(module, "").endswith(f"{PAST_FORWARD})"):
        return True
    return not base.is_marked and module.rpartition(".")[2] in BY_ARCHITECTURE.get(base.architecture, ())
