"""Layers that a model does not call although it reads their weights; standard library only.

A model may multiply by a layer's weight directly, so that PEFT's wrapper never runs. A merged weight would
change the output, a LoRA would not, and the two forms would differ. The lists are from the models of transformers 5.23.
"""

from typing import Final

from loratree_registry.peft_format.layout import ATTENTION, CONVOLUTIONS
from loratree_registry.peft_format.names import BaseIndex, module_of

# Kind of a module → the layers in it that it reads and does not call.
BY_PARENT: Final[dict[str, tuple[str, ...]]] = {
    "MambaMixer": ("dt_proj",),
    "FalconMambaMixer": ("dt_proj",),
    "JambaMambaMixer": ("dt_proj",),
    "MobileBertLMPredictionHead": ("dense", "decoder"),
}

# torch's TransformerEncoderLayer hands these layers to one kernel in eval mode. It owns no tensor, so the manifest has
# no kind for it, and its parts identify it. A TransformerDecoderLayer calls its layers, and also has a norm3.
ENCODER: Final = ("linear1", "linear2", "self_attn")
ENCODER_PARTS: Final = (*ENCODER, "norm1", "norm2")

# Architecture → the layers that its head reads and does not call.
BY_ARCHITECTURE: Final[dict[str, tuple[str, ...]]] = {
    "DebertaForMaskedLM": ("word_embeddings",),
    "DebertaV2ForMaskedLM": ("word_embeddings",),
    "DiffusionGemmaForBlockDiffusion": ("embed_tokens",),
    "PerceiverForMaskedLM": ("embeddings",),
}

# Embeddings and convolutions that some model reads as a table or hands to a kernel, in any module.
TABLES: Final = frozenset(
    (
        "cls_embed",
        "codebook",
        "conv1d",
        "conv_1d",
        "embed_positions",
        "hq_token",
        "iou_token",
        "level_embed",
        "mask_tokens",
        "ngram_embeddings",
        "no_mask_embed",
        "not_a_point_embed",
        "obj_score_token",
        "patterns",
        "point_embed",
        "position_embedding",
        "position_embeddings",
        "presence_token",
        "prompt_ctx",
        "queries_embedder",
        "queries_features",
        "query_1024_resolution",
        "query_768_resolution",
        "query_embed",
        "query_feat",
        "query_position_embeddings",
        "query_refpoint_embeddings",
        "reference_point_embed",
        "reference_points",
        "rel_embeddings",
        "relative_attention_bias",
        "tgt_embed",
        "value_embeddings",
    )
)


def is_read_past_forward(base: BaseIndex, module: str) -> bool:
    """Return whether the base's model reads the weight of the layer `module` without calling the layer."""
    parent, layer = module_of(module), module.rpartition(".")[2]
    if base.kinds.get(module) in ("Embedding", *CONVOLUTIONS) and layer in TABLES:
        return True
    if layer in ENCODER and _is_encoder_layer(base, parent):
        return True
    return layer in (*BY_PARENT.get(base.kinds.get(parent, ""), ()), *BY_ARCHITECTURE.get(base.architecture, ()))


def _is_encoder_layer(base: BaseIndex, module: str) -> bool:
    """Return whether a module has the parts of a TransformerEncoderLayer, and not the decoder's norm3."""
    kinds = {part: base.kinds.get(_join(module, part)) for part in (*ENCODER_PARTS, "norm3")}
    return kinds["self_attn"] == ATTENTION and all(kinds[part] for part in ENCODER_PARTS) and kinds["norm3"] is None


def _join(module: str, part: str) -> str:
    return f"{module}.{part}" if module else part
