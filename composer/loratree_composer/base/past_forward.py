"""Layers whose weight a model reads without calling the layer: PEFT's wrapper never runs there.

A merged weight would change the output and a LoRA would not, so the two forms would differ. READ is from the models of
transformers 5.23; tests/composer/base/test_past_forward.py reads their source again and names what is missing.
"""

from typing import Final

from torch import nn

# The mask decoders and prompt encoders of Segment Anything: SAM and SAM-HQ, then SAM 2 and what was made of it.
SAM_DECODERS: Final = ("SamHQMaskDecoder", "SamMaskDecoder")
SAM2_DECODERS: Final = (
    "EdgeTamMaskDecoder",
    "EdgeTamVideoMaskDecoder",
    "Sam2MaskDecoder",
    "Sam2VideoMaskDecoder",
    "Sam3TrackerMaskDecoder",
    "Sam3TrackerVideoMaskDecoder",
)
SAM_PROMPTS: Final = ("SamHQPromptEncoder", "SamPromptEncoder")
SAM2_PROMPTS: Final = (
    "EdgeTamPromptEncoder",
    "EdgeTamVideoPromptEncoder",
    "Sam2PromptEncoder",
    "Sam2VideoPromptEncoder",
    "Sam3TrackerPromptEncoder",
    "Sam3TrackerVideoPromptEncoder",
)

# The name of a layer in its parent → the classes of the parents, in transformers, whose forward reads its weight. A few
# of them call the layer too, on another way through the forward.
READ: Final[dict[str, tuple[str, ...]]] = {
    "classifier": ("LongcatFlashTopkRouter",),
    "cls_embed": (
        "Sam3GeometryEncoder",
        "Sam3LiteTextGeometryEncoder",
    ),
    "codebook": ("DacVectorQuantize",),
    "conv": (
        "Lfm2MoeShortConv",
        "Lfm2ShortConv",
        "Lfm3ShortConv",
    ),
    "conv1d": (
        "BailingHybridDeltaAttention",
        "BambaMixer",
        "FalconH1Mixer",
        "FalconMambaMixer",
        "Glm5NextTextLinearAttention",
        "GraniteMoeHybridMambaLayer",
        "Inkling2ShortConvolution",
        "InklingShortConvolution",
        "JambaMambaMixer",
        "KimiLinearDeltaAttention",
        "Mamba2Mixer",
        "MambaMixer",
        "NemotronHMamba2Mixer",
        "OlmoHybridGatedDeltaNet",
        "Qwen3NextGatedDeltaNet",
        "Qwen3_5GatedDeltaNet",
        "Qwen3_5MoeGatedDeltaNet",
        "Qwen4ExpTextGatedDeltaNet",
        "Zamba2MambaMixer",
        "ZambaMambaMixer",
    ),
    "conv_1d": ("RecurrentGemmaRecurrentBlock",),
    "decoder": ("MobileBertLMPredictionHead",),
    "dense": ("MobileBertLMPredictionHead",),
    "dt_proj": (
        "FalconMambaMixer",
        "JambaMambaMixer",
        "MambaMixer",
    ),
    "embed_positions": (
        "AudioFlamingo3Encoder",
        "MossTranscribeDiarizeAudioModel",
        "Qwen2AudioEncoder",
        "VoxtralEncoder",
    ),
    "embedding": (
        "ChameleonVQVAEVectorQuantizer",
        "Emu3VQVAEVectorQuantizer",
        "GlmImageVQVAEVectorQuantizer",
        "JanusVQVAEVectorQuantizer",
    ),
    "hq_token": ("SamHQMaskDecoder",),
    "iou_token": (*SAM_DECODERS, *SAM2_DECODERS),
    "k_linear": ("DabDetrMHAttentionMap",),
    "k_proj": (
        "ConditionalDetrMHAttentionMap",
        "DetrMHAttentionMap",
        "MaskFormerDetrMHAttentionMap",
        "WavLMAttention",
    ),
    "kernel": ("TDNNLayer",),
    "level_embed": (
        "Mask2FormerTransformerModule",
        "OneFormerTransformerModule",
    ),
    "mask_tokens": (*SAM_DECODERS, *SAM2_DECODERS),
    "ngram_embeddings": ("ProphetNetDecoder",),
    "no_mask_embed": (*SAM_PROMPTS, *SAM2_PROMPTS),
    "not_a_point_embed": (*SAM_PROMPTS, *SAM2_PROMPTS),
    "obj_score_token": SAM2_DECODERS,
    "out_proj": ("WavLMAttention",),
    "patterns": ("DabDetrModel",),
    "point_embed": SAM2_PROMPTS,
    "point_embed.0": (
        "SamHQPromptEncoder",
        "SamPromptEncoder",
    ),
    "point_embed.1": (
        "SamHQPromptEncoder",
        "SamPromptEncoder",
    ),
    "point_embed.2": (
        "SamHQPromptEncoder",
        "SamPromptEncoder",
    ),
    "point_embed.3": (
        "SamHQPromptEncoder",
        "SamPromptEncoder",
    ),
    "position_embedding": (
        "Cosmos3EdgeVisionEmbeddings",
        "Glm4vMoeVisionEmbeddings",
        "Glm4vVisionEmbeddings",
        "GlmImageVisionEmbeddings",
        "HunYuanVLVisionPatchEmbed",
        "Siglip2VisionEmbeddings",
        "Step3p7VisionEmbeddings",
    ),
    "presence_token": (
        "Sam3DetrDecoder",
        "Sam3LiteTextDetrDecoder",
    ),
    "prompt_ctx": ("OneFormerTextMapper",),
    "q_proj": ("WavLMAttention",),
    "queries_embedder": (
        "Mask2FormerTransformerModule",
        "MaskFormerTransformerModule",
        "OneFormerTransformerModule",
    ),
    "queries_features": ("Mask2FormerTransformerModule",),
    "query": (
        "EomtDinov3ForUniversalSegmentation",
        "EomtForUniversalSegmentation",
        "VideomtForUniversalSegmentation",
    ),
    "query_1024_resolution": ("DeepseekOcr2VisionModel",),
    "query_768_resolution": ("DeepseekOcr2VisionModel",),
    "query_embed": (
        "Sam3DetrDecoder",
        "Sam3LiteTextDetrDecoder",
    ),
    "query_feat": (
        "LwDetrModel",
        "RfDetrModel",
    ),
    "query_key": ("LSHSelfAttention",),
    "query_position_embeddings": (
        "ConditionalDetrModel",
        "DeformableDetrModel",
        "DetrModel",
        "GroundingDinoModel",
        "MMGroundingDinoModel",
        "TableTransformerModel",
    ),
    "query_refpoint_embeddings": ("DabDetrModel",),
    "reference_point_embed": (
        "LwDetrModel",
        "RfDetrModel",
    ),
    "reference_points": (
        "GroundingDinoModel",
        "MMGroundingDinoModel",
        "Sam3DetrDecoder",
        "Sam3LiteTextDetrDecoder",
    ),
    "rel_embeddings": (
        "DebertaEncoder",
        "DebertaV2Encoder",
        "SEWDTransformerEncoder",
    ),
    "rel_pos_bias": (
        "LayoutLMv2Encoder",
        "LayoutLMv3Encoder",
        "PPDocLayoutV2ReadingOrderEncoder",
    ),
    "rel_pos_x_bias": (
        "LayoutLMv2Encoder",
        "LayoutLMv3Encoder",
    ),
    "rel_pos_y_bias": (
        "LayoutLMv2Encoder",
        "LayoutLMv3Encoder",
    ),
    "tgt_embed": ("OmDetTurboDecoder",),
    "unembedding_projection": ("NeoMMEForMaskedLM",),
    "v_proj": ("WavLMAttention",),
    "value": ("LSHSelfAttention",),
}

# Model → the layer whose weight its head multiplies by, and whether this depends on the config's `legacy`.
HEADS: Final = {
    "DebertaForMaskedLM": ("deberta.embeddings.word_embeddings", True),
    "DebertaV2ForMaskedLM": ("deberta.embeddings.word_embeddings", True),
    "DiffusionGemmaForBlockDiffusion": ("embed_tokens", False),
    "PerceiverForMaskedLM": ("perceiver.input_preprocessor.embeddings", False),
}

ENCODER: Final = ("linear1", "linear2", "self_attn")  # torch's TransformerEncoderLayer hands them to one kernel in eval


def is_read_past_forward(module: nn.Module, name: str) -> bool:
    """Return whether `module`, a model, reads the weight of its layer `name` without calling the layer."""
    if _is_read_by_head(module, name):
        return True
    path = name.split(".")
    for depth in (1, 2):  # such a layer may be an entry of a list
        if depth > len(path):
            return False
        parent = module.get_submodule(".".join(path[:-depth]))
        own = ".".join(path[-depth:])
        if _is_from_transformers(parent) and type(parent).__name__ in READ.get(own, ()):
            return True
        if own in ENCODER and isinstance(parent, nn.TransformerEncoderLayer):
            return True
    return False


def _is_read_by_head(module: nn.Module, name: str) -> bool:
    layer, is_modern = HEADS.get(type(module).__name__, ("", False))
    if not layer or not _is_from_transformers(module) or not f".{name}".endswith(f".{layer}"):
        return False
    return not (is_modern and getattr(module.config, "legacy", True))


def _is_from_transformers(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.models.")
