"""The one table of what a PEFT LoRA adapter may hold: what each part becomes in a chain, or why it is refused.

Widening what is composed means moving a row here: a layer kind into RULES, a feature out of REFUSED.
"""

from dataclasses import dataclass
from typing import Final

from loratree_registry.adapter_spec import Rule

# Layer kind in the base's manifest → what plain A and B on it become.
RULES: Final[dict[str, Rule]] = {"Linear": "additive", "Conv1D": "additive"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something PEFT can write that is not composed: its name, why, and what to do instead.

    `reshapes` tells that A and B then have other shapes or modules, so that checking those would only add noise.
    """

    name: str
    why: str
    reshapes: bool = False


DORA: Final = Refusal("DoRA", "it rescales each row of the sum so far; train without use_dora")
LORA_BIAS: Final = Refusal("lora_bias", "it adds to the bias, not to the weight; train with lora_bias=False")
BIAS: Final = Refusal("bias training", "it replaces the base's biases; train with bias='none'")
SAVED: Final = Refusal("modules_to_save", "it replaces whole parameters of the base; train without it")
TOKENS: Final = Refusal("trainable_token_indices", "it replaces rows of the embedding; train without it")
EMBEDDING: Final = Refusal("LoRA on an Embedding", "only Linear and Conv1D are composed; leave embeddings out")
CONVOLUTION: Final = Refusal("LoRA on a convolution", "only Linear and Conv1D are composed; leave convolutions out")
ATTENTION: Final = Refusal("LoRA on MultiheadAttention", "it packs q, k and v in one parameter; leave it out")
PAST_FORWARD: Final = Refusal(
    "LoRA on a weight that the model reads past its layer", "PEFT's adapter does nothing there; leave it out"
)
PARAMETERS: Final = Refusal(
    "target_parameters", "its tensors do not name their parameter; use target_modules", reshapes=True
)
BASE_COPY: Final = Refusal(
    "a copy of the base's weights with other values",
    "the base is shared, and only the very same bytes may be repeated; save_embedding_layers=False leaves them out",
)
VOCABULARY: Final = Refusal("a resized vocabulary", "the tree's base has no rows for added tokens; train without them")
TIED: Final = Refusal("LoRA on a tied weight", "it would change the module that it is tied to; leave it out")
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
    "use_dora": DORA,
    "lora_bias": LORA_BIAS,
    "bias": BIAS,
    "modules_to_save": SAVED,
    "trainable_token_indices": TOKENS,
    "target_parameters": PARAMETERS,
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

# How a tensor's name ends, behind the module's → the refusal it brings; the first that fits counts.
REFUSED_TENSORS: Final[dict[str, Refusal]] = {
    ".lora_magnitude_vector": DORA,
    ".lora_B.bias": LORA_BIAS,
    ".lora_embedding_A": EMBEDDING,
    ".lora_embedding_B": EMBEDDING,
    ".token_adapter.trainable_tokens_delta": TOKENS,
    ".base_layer.weight": BASE_COPY,
    ".base_layer.bias": BIAS,
    ".base_layer.out_proj.lora_A.weight": ATTENTION,
    ".base_layer.out_proj.lora_B.weight": ATTENTION,
    ".base_layer.lora_A.weight": PARAMETERS,
    ".base_layer.lora_B.weight": PARAMETERS,
    ".lora_diag": KASA,
    ".lora_velora_embed": VELORA,
    ".lora_monteclora_sampler.expert_weights": MONTECLORA,
    ".lora_monteclora_sampler.expert_weights_prior": MONTECLORA,
    ".lora_monteclora_sampler.gaussian_var_prior": MONTECLORA,
    ".lora_monteclora_sampler.std_prior": MONTECLORA,
}

# Layer kind → the refusal that plain A and B on it bring; any other kind outside RULES is refused by its own name.
REFUSED_KINDS: Final[dict[str, Refusal]] = {
    "Embedding": EMBEDDING,
    "Conv1d": CONVOLUTION,
    "Conv2d": CONVOLUTION,
    "Conv3d": CONVOLUTION,
    "MultiheadAttention": ATTENTION,
    "NonDynamicallyQuantizableLinear": ATTENTION,
}

# Kind of a module → its linear layers whose weight it multiplies itself instead of calling them, so that PEFT's wrapper
# is never run (transformers 5.23). A merged weight would act there, a LoRA does not: the two forms would differ.
READ_PAST_FORWARD: Final[dict[str, tuple[str, ...]]] = {
    "MambaMixer": ("dt_proj",),
    "FalconMambaMixer": ("dt_proj",),
    "JambaMambaMixer": ("dt_proj",),
    "MobileBertLMPredictionHead": ("dense", "decoder"),
}

# init_lora_weights, beside true and false, that leave the base as it is; the others change it before training.
PLAIN_INITS: Final = ("gaussian", "orthogonal", "eva", "mica")
CHANGING_INITS: Final = ("pissa", "olora", "corda", "lora_ga", "loftq")
