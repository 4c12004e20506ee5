"""The table of the layer kinds on which LoRA is composed, and of the features of PEFT that are refused, with reasons.

Each Refusal names what is refused. To compose it, or to add a layer kind to COMPOSED, also write its layout, its field
in the spec and its edit (docs/architecture.md, "Where things go").
"""

from typing import Final

from loratree_registry.peft_format.findings import Refusal
from loratree_registry.peft_format.layout import ATTENTION, CONVOLUTIONS, OUT_PROJ

# Layer kinds on which A and B are composed. Experts are absent: only target_parameters puts a LoRA on them.
COMPOSED: Final = ("Linear", "Conv1D", "Embedding", *CONVOLUTIONS, ATTENTION)

BIASLESS: Final = Refusal(
    "lora_bias on a layer without a bias", "the base has no tensor to add it to; train with lora_bias=False"
)
ATTENTION_BIAS: Final = Refusal(
    "lora_bias on MultiheadAttention", "PEFT leaves the bias of in_proj out; train with lora_bias=False"
)
DORA_GROUPS: Final = Refusal(
    "DoRA on a convolution with groups", "PEFT takes the norm of another matrix there; train without use_dora"
)
PAST_FORWARD: Final = Refusal(
    "LoRA on a weight that the model reads past its layer",
    "PEFT's adapter has no effect where it is read so, and merged weights would have; leave it out",
)
RENAMED: Final = Refusal(
    "an adapter of a module that transformers has renamed",
    "PEFT does not rename it in the file, and cannot load it either; rename its keys, and target_modules, to the "
    "present names",
)
PARAMETRIZED: Final = Refusal(
    "LoRA on a layer whose weight is computed from other tensors",
    "the base has no weight to add to; leave it out, or train the whole layer with modules_to_save",
)
PARAMETERS: Final = Refusal(
    "target_parameters on such a parameter", "only a matrix and transformers' experts can be; use target_modules"
)
AMBIGUOUS: Final = Refusal(
    "target_parameters on parameters of one shape", "the file does not say which LoRA is on which; target one of them"
)
SINGLE_EXPERT: Final = Refusal(
    "target_parameters on a single expert",
    "PEFT reads its delta as a matrix's, which is transposed if the weight is [1, in, out]; leave it out",
)
LOST_EXPERTS: Final = Refusal(
    "LoRA on each expert's own layers",
    "this base has all experts in one tensor, and PEFT does not join them for its architecture; train on this base",
)
UNRECORDED_EXPERTS: Final = Refusal(
    "LoRA on each expert's own layers",
    "the base was recorded before loratree could join them; record it again with `loratree base add`",
)
EXPERT_EXTRAS: Final = Refusal(
    "DoRA or lora_bias on each expert's own layers", "PEFT does not join them; train without use_dora and lora_bias"
)
SOME_EXPERTS: Final = Refusal(
    "LoRA on some of the layers that a tensor of experts joins",
    "PEFT loads none of it; train on all layers of all experts, or on target_parameters",
)
EXPERT_SCALES: Final = Refusal(
    "LoRA on experts whose scale changes when PEFT joins them",
    "with use_rslora or patterns, PEFT computes another one than was trained; say the same scales with r and "
    "lora_alpha alone",
)
HIDDEN_EXPERTS: Final = Refusal(
    "LoRA on experts that target_modules chooses by a regular expression of their older names",
    "PEFT tries it on the present names alone, and leaves the experts out; write the layers' names as a list",
)
BESIDE_EXPERTS: Final = Refusal(
    "LoRA on a layer named as the experts' own layers were",
    "PEFT takes the name for the experts alone, and leaves this layer out; train on this base",
)
SAVED_LORA: Final = Refusal(
    "LoRA within modules_to_save", "PEFT cannot load the file that it saves; train the module in one way"
)
SAVED_TWICE: Final = Refusal(
    "modules_to_save of a module and of one inside it",
    "PEFT compares ends of names, and cannot load the file that it saves; train again with names that fit one of them",
)
MISSING: Final = Refusal(
    "modules_to_save of a module that the base lacks", "publish to a tree whose base has it, saved with the model"
)
BASE_COPY: Final = Refusal(
    "a copy of the base's weights with other values",
    "the base is shared, so a copy must have the same bytes; save_embedding_layers=False leaves copies out, and if it "
    "was trained, name its module in modules_to_save",
)
VOCABULARY: Final = Refusal(
    "a resized vocabulary",
    "the base has another number of rows; resize the base as for the training (resize_token_embeddings), save it as a "
    "base of its own, and publish to its tree",
)
OTHER_SHAPE: Final = Refusal("a value of another shape than the base's", "publish to a tree whose base has that shape")
TOKENS_KIND: Final = Refusal(
    "trainable_token_indices on such a layer",
    "only rows of an Embedding and of a Linear tied to it can be; train another way",
)
TOKENS_BIAS: Final = Refusal(
    "trainable_token_indices on a Linear with a bias",
    "PEFT leaves the bias out of its output; untie it or train another way",
)
TOKENS_TWICE: Final = Refusal(
    "trainable_token_indices on a layer that is trained otherwise too", "PEFT gives no order; train it in one way"
)
CHANGED_BASE: Final = Refusal(
    "an initialisation that changed the base",
    "its A and B fit only the changed weights; convert with save_pretrained's path_initial_model_for_weight_conversion",
)
BDLORA: Final = Refusal("BD-LoRA", "its factors are saved as blocks; train without use_bdlora", reshapes=True)
QALORA: Final = Refusal("QALoRA", "its A is pooled over the inputs; train without use_qalora", reshapes=True)
KASA: Final = Refusal("KaSA", "it changes the base and adds a diagonal; train without kasa_config")
ALORA: Final = Refusal("aLoRA", "it acts only behind its invocation tokens; train without alora_invocation_tokens")
ARROW: Final = Refusal("Arrow", "it routes between adapters token by token; train without arrow_config")
REPLICATION: Final = Refusal(
    "layer_replication", "it repeats layers that the base has once; train without it", reshapes=True
)
MEGATRON: Final = Refusal(
    "Megatron", "its parallel layers are saved in parts; train without megatron_config", reshapes=True
)
MONTECLORA: Final = Refusal("MonteCLoRA", "it samples around A and B; train without monteclora_config")

# Config field → the refusal of every value except the default.
REFUSED_FIELDS: Final[dict[str, Refusal]] = {
    "use_bdlora": BDLORA,
    "use_qalora": QALORA,
    "kasa_config": KASA,
    "alora_invocation_tokens": ALORA,
    "arrow_config": ARROW,
    "layer_replication": REPLICATION,
    "megatron_config": MEGATRON,
    "monteclora_config": MONTECLORA,
}

# Ending of a tensor's name, after the module's name → its refusal.
REFUSED_TENSORS: Final[dict[str, Refusal]] = {
    ".lora_diag": KASA,
    ".lora_monteclora_sampler.expert_weights": MONTECLORA,
    ".lora_monteclora_sampler.expert_weights_prior": MONTECLORA,
    ".lora_monteclora_sampler.gaussian_var_prior": MONTECLORA,
    ".lora_monteclora_sampler.std_prior": MONTECLORA,
}

# The tasks that PEFT knows; it cannot load a config with another.
TASKS: Final = ("CAUSAL_LM", "FEATURE_EXTRACTION", "QUESTION_ANS", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS")

# Task of a config → the ends of the names of modules that PEFT trains and saves, even if modules_to_save has them not.
IMPLIED_MODULES: Final[dict[str, tuple[str, ...]]] = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

# Endings of tensors that only training reads: VeLoRA's backward pass is its own, and its forward is LoRA's.
TRAINING_ONLY: Final = (".lora_velora_embed",)

# Values of init_lora_weights, besides true and false. The changing ones change the base before training.
PLAIN_INITS: Final = ("gaussian", "orthogonal", "eva", "mica")
CHANGING_INITS: Final = ("pissa", "olora", "corda", "lora_ga", "loftq")


def is_by_parameter(kind: str) -> bool:
    """Return whether only target_parameters can put a LoRA on a layer of this kind, such as experts or a router."""
    return kind not in (*COMPOSED, OUT_PROJ)
