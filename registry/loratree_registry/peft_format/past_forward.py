"""The weights that models read past their layer, where PEFT's LoRA does nothing; standard library only.

A model may multiply a layer's weight itself instead of calling the layer: then PEFT's wrapper is never run. A merged
weight would act there, a LoRA does not, and the two forms would differ. Found in the models of transformers 5.23.
"""

from typing import Final

from loratree_registry.peft_format.base_index import BaseIndex, module_of
from loratree_registry.peft_format.layout import ATTENTION, CONVOLUTIONS

# Kind of a module → the layers of its own that it reads.
BY_PARENT: Final[dict[str, tuple[str, ...]]] = {
    "MambaMixer": ("dt_proj",),
    "FalconMambaMixer": ("dt_proj",),
    "JambaMambaMixer": ("dt_proj",),
    "MobileBertLMPredictionHead": ("dense", "decoder"),
}

# The layers that torch's TransformerEncoderLayer hands to one kernel in eval mode, and its parts: the manifest has no
# kind for it, as it owns no tensor itself. Its TransformerDecoderLayer, which calls its layers, has a norm3 as well.
ENCODER: Final = ("linear1", "linear2", "self_attn")
ENCODER_PARTS: Final = (*ENCODER, "norm1", "norm2")

# Architecture → layers that its head reads.
BY_ARCHITECTURE: Final[dict[str, tuple[str, ...]]] = {
    "DebertaForMaskedLM": ("word_embeddings",),
    "DebertaV2ForMaskedLM": ("word_embeddings",),
    "DiffusionGemmaForBlockDiffusion": ("embed_tokens",),
    "PerceiverForMaskedLM": ("embeddings",),
}

# Embeddings and convolutions that some model reads as a table or hands to a kernel, wherever they stand.
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
    """Tells whether the weight of the layer `module` of the base is read where no LoRA would act."""
    parent, layer = module_of(module), module.rpartition(".")[2]
    if base.kinds.get(module) in ("Embedding", *CONVOLUTIONS) and layer in TABLES:
        return True
    if layer in ENCODER and _is_encoder_layer(base, parent):
        return True
    return layer in (*BY_PARENT.get(base.kinds.get(parent, ""), ()), *BY_ARCHITECTURE.get(base.architecture, ()))


def _is_encoder_layer(base: BaseIndex, module: str) -> bool:
    """Tells whether a module has the parts of a TransformerEncoderLayer, and none of the decoder's."""
    kinds = {part: base.kinds.get(_within(module, part)) for part in (*ENCODER_PARTS, "norm3")}
    return kinds["self_attn"] == ATTENTION and all(kinds[part] for part in ENCODER_PARTS) and kinds["norm3"] is None


def _within(module: str, part: str) -> str:
    return f"{module}.{part}" if module else part
