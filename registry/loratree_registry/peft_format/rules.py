"""The one table of what a PEFT LoRA adapter may hold: what each part becomes in a chain, or why it is refused.

Widening what is composed means moving a row here: a layer kind into COMPOSED, a feature out of REFUSED.
"""

from typing import Final

from loratree_registry.peft_format.findings import Refusal
from loratree_registry.peft_format.layout import ATTENTION, CONVOLUTIONS

# Layer kinds in the base's manifest on which A and B are composed. Experts hold LoRAs by target_parameters alone.
COMPOSED: Final = ("Linear", "Conv1D", "Embedding", *CONVOLUTIONS, ATTENTION)

BIASLESS: Final = Refusal(
    "lora_bias on a layer without a bias", "the base has no tensor to add it to; train with lora_bias=False"
)
ATTENTION_BIAS: Final = Refusal(
    "lora_bias on MultiheadAttention", "PEFT leaves that of in_proj out; train with lora_bias=False"
)
DORA_GROUPS: Final = Refusal(
    "DoRA on a convolution with groups", "PEFT takes the norm of another matrix there; train without use_dora"
)
PAST_FORWARD: Final = Refusal(
    "LoRA on a weight that the model reads past its layer", "PEFT's adapter does nothing there; leave it out"
)
PARAMETRIZED: Final = Refusal(
    "LoRA on a layer whose weight is computed from other tensors",
    "the base has no weight to add to; leave it out, or train the whole layer with modules_to_save",
)
PARAMETERS: Final = Refusal(
    "target_parameters on such a module", "only matrices of Linear and transformers' experts are; use target_modules"
)
AMBIGUOUS: Final = Refusal(
    "target_parameters on parameters of one shape", "the file does not say which LoRA is whose; target one of them"
)
SINGLE_EXPERT: Final = Refusal(
    "target_parameters on a single expert",
    "PEFT takes its delta for a matrix's, the other way round where it is kept as [1, in, out]; leave it out",
)
SAVED_LORA: Final = Refusal(
    "LoRA within modules_to_save", "PEFT cannot load what it saves of that; train the module in one way"
)
MISSING: Final = Refusal(
    "modules_to_save of a module that the base lacks", "publish to a tree whose base has it, saved with the model"
)
BASE_COPY: Final = Refusal(
    "a copy of the base's weights with other values",
    "the base is shared, and only the very same bytes may be repeated; save_embedding_layers=False leaves them out",
)
VOCABULARY: Final = Refusal("a resized vocabulary", "the tree's base has no rows for added tokens; train without them")
OTHER_SHAPE: Final = Refusal("a value of another shape than the base's", "publish to a tree whose base has that shape")
TOKENS_KIND: Final = Refusal(
    "trainable_token_indices on such a layer",
    "only rows of Embedding and of a Linear tied to it are; train another way",
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
    "its A and B fit those weights alone; convert with save_pretrained's path_initial_model_for_weight_conversion",
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
VELORA: Final = Refusal("VeLoRA", "it is not checked to leave A and B plain; train without velora_config")

# Config field → the refusal that any value but the default brings.
REFUSED_FIELDS: Final[dict[str, Refusal]] = {
    "use_bdlora": BDLORA,
    "use_qalora": QALORA,
    "kasa_config": KASA,
    "alora_invocation_tokens": ALORA,
    "arrow_config": ARROW,
    "layer_replication": REPLICATION,
    "megatron_config": MEGATRON,
    "monteclora_config": MONTECLORA,
    "velora_config": VELORA,
}

# How a tensor's name ends, behind the module's → the refusal it brings.
REFUSED_TENSORS: Final[dict[str, Refusal]] = {
    ".lora_diag": KASA,
    ".lora_velora_embed": VELORA,
    ".lora_monteclora_sampler.expert_weights": MONTECLORA,
    ".lora_monteclora_sampler.expert_weights_prior": MONTECLORA,
    ".lora_monteclora_sampler.gaussian_var_prior": MONTECLORA,
    ".lora_monteclora_sampler.std_prior": MONTECLORA,
}

# init_lora_weights, beside true and false, that leave the base as it is; the others change it before training.
PLAIN_INITS: Final = ("gaussian", "orthogonal", "eva", "mica")
CHANGING_INITS: Final = ("pissa", "olora", "corda", "lora_ga", "loftq")
