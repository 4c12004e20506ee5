"""One adapter of each kind that PEFT writes and that is refused by name, over a tiny base."""

from collections.abc import Callable
from typing import Any, Final

import torch
import transformers
from peft.tuners.lora import config as lora
from torch import nn

from tests.peft_adapters import EXPERTS, Q, Row
from tests.peft_bases import Attention, Encoder, Odd, bert, classifier, gpt_oss, llama, opt, qwen3_moe


def _resized(model: nn.Module) -> nn.Module:
    assert isinstance(model, transformers.PreTrainedModel)
    model.resize_token_embeddings(99, mean_resizing=False)
    return model


def _with_head(_: nn.Module) -> nn.Module:
    return classifier()


def _more_labels(_: nn.Module) -> nn.Module:
    return classifier(num_labels=5)


def _other_head(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.get_submodule("lm_head").weight[0, 0] += 1  # type: ignore[index, operator, union-attr]
    return model


def _refused(name: str, meaning: str, reason: str, make: Callable[[], nn.Module] = llama, **config: Any) -> Row:
    return Row(name=name, meaning=meaning, reason=reason, make=make, config=config)


CHANGED: Final = "an initialisation that changed the base is not composed"

REFUSED: Final[tuple[Row, ...]] = (
    _refused(
        "bd-lora",
        "BD-LoRA: factors saved as blocks",
        "BD-LoRA is not composed (use_bdlora={",
        target_modules=Q,
        use_bdlora=lora.BdLoraConfig(target_modules_bd_a=Q, nblocks=2, match_strict=False),
    ),
    _refused(
        "qalora",
        "QALoRA: A is pooled over the inputs",
        "QALoRA is not composed (use_qalora=true)",
        target_modules=Q,
        use_qalora=True,
    ),
    _refused(
        "kasa",
        "KaSA: the base is changed, and a diagonal added",
        "KaSA is not composed (kasa_config={",
        target_modules=Q,
        kasa_config=lora.KasaConfig(),
    ),
    _refused(
        "alora",
        "aLoRA: acts behind its invocation tokens alone",
        "aLoRA is not composed (alora_invocation_tokens=[1])",
        target_modules=Q,
        alora_invocation_tokens=[1],
    ),
    _refused(
        "layer-replication",
        "layer_replication: layers of the base repeated",
        "layer_replication is not composed (layer_replication=[[0, 2], [1, 2]])",
        target_modules=Q,
        layer_replication=[(0, 2), (1, 2)],
    ),
    _refused(
        "monteclora",
        "MonteCLoRA: samples around A and B",
        "MonteCLoRA is not composed",
        target_modules=Q,
        monteclora_config=lora.MontecloraConfig(),
    ),
    _refused(
        "pissa",
        "PiSSA, not converted: the base was changed",
        CHANGED + ' (init_lora_weights="pissa")',
        target_modules=Q,
        init_lora_weights="pissa",
    ),
    _refused(
        "olora",
        "OLoRA, not converted: the base was changed",
        CHANGED + ' (init_lora_weights="olora")',
        target_modules=Q,
        init_lora_weights="olora",
    ),
    _refused(
        "lora-ga",
        "LoRA-GA, not converted: the base was changed",
        CHANGED + ' (init_lora_weights="lora_ga")',
        target_modules=Q,
        init_lora_weights="lora_ga",
    ),
    _refused(
        "lora-bias-biasless",
        "lora_bias on a layer without a bias",
        "lora_bias on a layer without a bias is not composed",
        target_modules=Q,
        lora_bias=True,
    ),
    _refused(
        "lora-bias-attention",
        "lora_bias on MultiheadAttention",
        "lora_bias on MultiheadAttention is not composed (attn",
        Attention,
        target_modules=["attn"],
        lora_bias=True,
    ),
    _refused(
        "attention-out-proj",
        "LoRA on the out_proj of an attention alone, which is never called",
        "LoRA on a weight that the model reads past its layer is not composed (attention.out_proj)",
        Odd,
        target_modules=["out_proj"],
    ),
    _refused(
        "encoder-layer",
        "layers within torch's TransformerEncoderLayer, which reads their weights in eval mode",
        "LoRA on a weight that the model reads past its layer is not composed (layers.0.linear1",
        Encoder,
        target_modules=["linear1", "linear2"],
    ),
    _refused(
        "encoder-attention",
        "the attention within torch's TransformerEncoderLayer",
        "LoRA on a weight that the model reads past its layer is not composed (layers.0.self_attn",
        Encoder,
        target_modules=["self_attn"],
    ),
    _refused(
        "conv-dilation",
        "a convolution with dilation, which lora_A has not",
        "module dilated is of kind Conv2d(dilation)",
        Odd,
        target_modules=["dilated"],
    ),
    _refused(
        "conv-weight-norm",
        "a layer with weight norm or another parametrization",
        "LoRA on a layer whose weight is computed from other tensors is not composed (normed)",
        Odd,
        target_modules=["normed"],
    ),
    _refused(
        "conv-padding-mode",
        "a convolution with a padding_mode, which lora_A has not",
        "module reflected is of kind Conv2d(padding_mode)",
        Odd,
        target_modules=["reflected"],
    ),
    _refused(
        "dora-groups",
        "DoRA on a convolution with groups",
        "DoRA on a convolution with groups is not composed (grouped)",
        Odd,
        target_modules=["grouped"],
        use_dora=True,
    ),
    _refused(
        "embedding-max-norm",
        "an Embedding that renorms its weight as it reads",
        "module renormed is of kind Embedding(max_norm)",
        Odd,
        target_modules=["renormed"],
    ),
    _refused(
        "embedding-other",
        "an Embedding with a forward of its own",
        "module offset is of kind OPTLearnedPositionalEmbedding",
        Odd,
        target_modules=["offset"],
    ),
    _refused(
        "parameters-other",
        "target_parameters on a module that is not known",
        "target_parameters on such a parameter is not composed (matrices of kind Matrices)",
        Odd,
        target_modules=[],
        target_parameters=["matrices.up", "matrices.down"],
    ),
    _refused(
        "lora-in-saved",
        "target_parameters within a saved module",
        "LoRA within modules_to_save is not composed (model.layers.0.self_attn.q_proj",
        target_modules=[],
        target_parameters=["q_proj.weight"],
        modules_to_save=["self_attn"],
    ),
    Row(
        name="saved-missing",
        meaning="modules_to_save that the base lacks, such as a new head",
        make=llama,
        reason="modules_to_save of a module that the base lacks is not composed (base_model.model.score.weight)",
        config={"target_modules": Q, "task_type": "SEQ_CLS"},
        trained_on=_with_head,
    ),
    Row(
        name="resized",
        meaning="a resized vocabulary",
        make=llama,
        reason="a resized vocabulary is not composed (base_model.model.",
        config={"target_modules": Q, "modules_to_save": ["embed_tokens", "lm_head"]},
        trained_on=_resized,
    ),
    Row(
        name="other-copy",
        meaning="a copy of the base's weights with other values",
        make=llama,
        reason="a copy of the base's weights with other values is not composed (base_model.model.lm_head.base_layer",
        config={"target_modules": ["lm_head"]},
        trained_on=_other_head,
    ),
    _refused(
        "tokens-biased-head",
        "token rows of an embedding whose tied head has a bias, which PEFT leaves out",
        "trainable_token_indices on a Linear with a bias is not composed (cls.predictions.decoder)",
        bert,
        target_modules=["query"],
        trainable_token_indices=[1],
    ),
    _refused(
        "tokens-other",
        "token rows of an Embedding with a forward of its own",
        "trainable_token_indices on such a layer is not composed (model.decoder.embed_positions)",
        opt,
        target_modules=Q,
        trainable_token_indices={"embed_positions": [1]},
    ),
    Row(
        name="saved-other-shape",
        meaning="modules_to_save of another shape than the base's, such as more labels",
        make=classifier,
        reason="a value of another shape than the base's is not composed (base_model.model.score.weight, [5, 32]",
        config={"target_modules": Q, "task_type": "SEQ_CLS"},
        trained_on=_more_labels,
    ),
    _refused(
        "experts-single",
        "target_parameters on one expert kept as [1, in, out], whose delta PEFT adds the other way round",
        "target_parameters on a single expert is not composed (model.layers.0.mlp.experts.",
        lambda: gpt_oss(num_local_experts=1, num_experts_per_tok=1),
        **EXPERTS,
    ),
    _refused(
        "experts-single-plain",
        "target_parameters on one expert kept as [1, out, in]",
        "target_parameters on a single expert is not composed (model.layers.0.mlp.experts.",
        lambda: qwen3_moe(num_experts=1, num_local_experts=1, num_experts_per_tok=1),
        **EXPERTS,
    ),
)

_CONFIG: Final = "tests/registry/peft_format/test_classify.py::test_a_config_that_says_what_is_not_composed_is_refused"
_ADAPTERS: Final = "tests/registry/peft_format/test_peft_adapters.py"
_LAYERS: Final = "tests/composer/test_expert_layers.py::test_where_pefts_forward_is_not_what_was_trained"

# What PEFT writes only after a preparation that needs data, a second adapter or another package: its meaning, what is
# said of it, and its test.
BY_CONFIG: Final[tuple[tuple[str, str, str], ...]] = (
    ("CorDA, not converted: the base was changed", f'{CHANGED} (init_lora_weights="corda")', _CONFIG),
    ("LoftQ: the base was quantised", f'{CHANGED} (init_lora_weights="loftq")', _CONFIG),
    ("Arrow: routes between adapters token by token", "Arrow is not composed", _CONFIG),
    ("Megatron: layers saved in parts", "Megatron is not composed", _CONFIG),
    (
        "a setting that PEFT does not know, and that may change what is computed",
        "which PEFT 0.21.2 does not know",
        _CONFIG,
    ),
    (
        "modules_to_save whose names fit a module and one inside it",
        "modules_to_save of a module and of one inside it is not composed",
        "tests/composer/test_token_rows.py::test_a_saved_module_inside_a_saved_module_is_refused",
    ),
    (
        "modules that transformers has renamed since, where PEFT does not rename them in the file (Qwen2-VL, ViT)",
        "an adapter of a module that transformers has renamed is not composed",
        "tests/composer/test_older_names.py::test_where_peft_fails_the_rename_is_named",
    ),
    (
        "LoRA on each expert's own layers, where PEFT does not join them (Qwen2-MoE)",
        "LoRA on each expert's own layers is not composed",
        _LAYERS,
    ),
    (
        "LoRA on some experts' layers, without down, or without gate or up",
        "LoRA on some of the layers that a tensor of experts joins is not composed",
        _LAYERS,
    ),
    (
        "LoRA on experts' layers with rsLoRA, or with another alpha for some",
        "LoRA on experts whose scale changes when PEFT joins them is not composed",
        _LAYERS,
    ),
    (
        "LoRA on dense layers or shared experts that are named as the experts' layers are (DeepSeek-V3)",
        "LoRA on a layer named as the experts' own layers were is not composed",
        _LAYERS,
    ),
    (
        "LoRA on experts' layers that target_modules spells by their older names in a regular expression",
        "LoRA on experts that target_modules chooses by a regular expression of their older names is not composed",
        _LAYERS,
    ),
    (
        "DoRA or lora_bias on each expert's own layers",
        "DoRA or lora_bias on each expert's own layers is not composed",
        "tests/composer/test_expert_layers.py::test_experts_that_cannot_be_joined_are_refused",
    ),
    (
        "target_parameters on parameters of one shape in one module",
        "target_parameters on parameters of one shape is not composed",
        f"{_ADAPTERS}::test_loras_on_parameters_of_one_shape_are_refused_as_nothing_tells_whose_is_whose",
    ),
    (
        "token rows of an embedding that is saved whole as well",
        "trainable_token_indices on a layer that is trained otherwise too is not composed",
        f"{_ADAPTERS}::test_token_rows_of_a_saved_embedding_are_refused",
    ),
)
