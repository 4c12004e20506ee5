"""One adapter of each kind that PEFT writes, over a tiny base of each kind: what the support table is tested on.

Each row makes its base anew, the same for the same seed, and lets PEFT itself write the adapter; every trained value is
random and visible, so that whatever is left out of a composition shows in `run`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import peft
import torch
from peft.tuners.lora import config as lora
from torch import nn

from loratree_registry.peft_format.spec import Rule
from tests import tiny
from tests.peft_bases import (
    Attention,
    Convolutions,
    Decoder,
    Normed,
    Run,
    biased_llama,
    classifier,
    gemma3,
    gpt2,
    gpt_oss,
    image,
    llama,
    llama4,
    logits,
    mixtral,
    olmoe,
    quiet,
    qwen3_moe,
    sequence,
    tied_llama,
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of adapter: its base, the config that makes PEFT write it, and what becomes of it.

    `rules` are those of its parts, none where it is refused; `reason` is then a phrase of the refusal. `run` gives the
    output that shows the adapter's effect. `merges` tells whether the adapter is a value of the base's tensors at all,
    `chains_flatten` whether two such levels are one adapter, which ordered ones never are.
    `trained_on` makes another model of the base, on which the adapter is then trained.
    """

    name: str
    meaning: str
    make: Callable[[], nn.Module]
    config: dict[str, Any]
    rules: tuple[Rule, ...] = ()
    reason: str = ""
    run: Run = logits
    merges: bool = True
    chains_flatten: bool = True
    trained_on: Callable[[nn.Module], nn.Module] | None = None

    @property
    def forms(self) -> list[str]:
        """The forms that a chain of such adapters takes."""
        flattens = self.chains_flatten and "ordered" not in self.rules
        return [*(["merge"] if self.merges else []), "stack", *(["flatten"] if flattens else [])]

    def base(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The base model, the same values for the same seed, in eval mode."""
        torch.manual_seed(seed)
        model = self.make()
        randomize(model)
        return model.to(dtype).eval()

    def adapt(self, base: nn.Module, directory: Path, seed: int = 1, **config: Any) -> Path:
        """Lets PEFT write an adapter over `base`, which stays as it is, and returns the directory."""
        torch.manual_seed(seed)
        settings = {"r": 4, "lora_alpha": 6} | copy.deepcopy(self.config) | config
        model = copy.deepcopy(base)
        with quiet():
            model = model if self.trained_on is None else self.trained_on(model)
            tuned = peft.get_peft_model(model, peft.LoraConfig(**settings))
            fill(tuned)
            tuned.save_pretrained(directory)
        return directory

    def load(self, base: nn.Module, directory: Path) -> nn.Module:
        """PEFT's own model of the adapter over a copy of `base`, in the base's dtype and eval mode: the reference."""
        with quiet():
            model = peft.PeftModel.from_pretrained(copy.deepcopy(base), directory, autocast_adapter_dtype=False)
            return model.to(next(base.parameters()).dtype).eval()


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Gives every parameter of a base visible random values."""
    for parameter in model.parameters():
        noise = torch.randn_like(parameter) * 0.2
        if parameter.dim() > 1:
            parameter.copy_(noise)
        else:
            parameter.add_(noise)  # biases and norms start as zeros and ones


@torch.no_grad()
def fill(tuned: nn.Module, *, std: float = 0.2) -> None:
    """Gives every trained value something to show: random factors, and all else changed from the base's."""
    for name, parameter in tuned.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn_like(parameter) * std
        if "lora_magnitude_vector" in name:
            parameter.mul_(1 + noise)
        elif "lora_" in name:
            parameter.copy_(noise)  # in place: some are tied
        else:
            parameter.add_(noise)
    saved = tuned.state_dict().keys()  # other buffers, such as Gemma 3's embed_scale, are never saved
    for name, buffer in tuned.named_buffers():
        if ".modules_to_save." in name and name in saved:
            buffer.add_(torch.rand_like(buffer) if buffer.is_floating_point() else 7)


ADDITIVE: Final[tuple[Rule, ...]] = ("additive",)


MIXED: Final[tuple[Rule, ...]] = ("additive", "override")


ORDERED: Final[tuple[Rule, ...]] = ("ordered",)


Q: Final = ["q_proj"]


EXPERTS: Final[dict[str, Any]] = {"target_modules": [], "target_parameters": ["gate_up_proj", "down_proj"]}


def _composed(name: str, meaning: str, make: Callable[[], nn.Module], rules: tuple[Rule, ...], **config: Any) -> Row:
    return Row(name=name, meaning=meaning, make=make, rules=rules, config=config)


ACCEPTED: Final[tuple[Row, ...]] = (
    _composed("linear", "Linear: W += s·BA", llama, ADDITIVE, target_modules=tiny.LINEARS),
    _composed("conv1d-hf", "Conv1D of Hugging Face: W += s·(BA)ᵀ", gpt2, ADDITIVE, target_modules=["c_attn", "c_proj"]),
    _composed("embedding", "Embedding: E += s·(BA)ᵀ", llama, ADDITIVE, target_modules=["embed_tokens", "q_proj"]),
    _composed(
        "embedding-scaled",
        "Embedding whose forward multiplies its rows (embed_scale)",
        gemma3,
        ADDITIVE,
        target_modules=["embed_tokens", "q_proj"],
    ),
    _composed(
        "lm-head",
        "the head of a model, beside which PEFT saves the base's",
        llama,
        ADDITIVE,
        target_modules=["lm_head"],
    ),
    _composed(
        "tied-embedding",
        "LoRA on an embedding that lm_head is tied to: the embedding alone changes",
        tied_llama,
        ADDITIVE,
        target_modules=["embed_tokens"],
    ),
    _composed(
        "tied-head",
        "LoRA on an lm_head that is tied to the embedding: the head alone changes",
        tied_llama,
        ADDITIVE,
        target_modules=["lm_head"],
    ),
    _composed(
        "tied-both",
        "ensure_weight_tying: one LoRA for the embedding and for the head tied to it",
        tied_llama,
        ADDITIVE,
        target_modules=["embed_tokens"],
        ensure_weight_tying=True,
    ),
    *(
        Row(
            name=f"conv{n}d",
            meaning=f"Conv{n}d: W += s·conv(Aᵀ, B)",
            make=lambda n=n: Convolutions(n),
            rules=ADDITIVE,
            config={"target_modules": ["first", "second"]},
            run=image(n),
        )
        for n in (1, 2, 3)
    ),
    Row(
        name="conv-groups",
        meaning="Conv with groups: y += s·conv(conv(x, A), B), which is no value of W",
        make=lambda: Convolutions(2, groups=2),
        rules=ADDITIVE,
        config={"target_modules": ["first", "second"]},
        run=image(2),
        merges=False,
    ),
    Row(
        name="attention",
        meaning="MultiheadAttention: in_proj_weight += s·BA, out_proj.weight += 2s·BA",
        make=Attention,
        rules=ADDITIVE,
        config={"target_modules": ["proj", "attn"]},
        run=sequence,
    ),
    Row(
        name="decoder-layer",
        meaning="layers within torch's TransformerDecoderLayer",
        make=Decoder,
        rules=ADDITIVE,
        config={"target_modules": ["linear1", "linear2", "self_attn", "multihead_attn"]},
        run=sequence,
    ),
    _composed("lora-bias", "lora_bias: b += s·b_B", gpt2, ADDITIVE, target_modules=["c_attn"], lora_bias=True),
    _composed("dora", "DoRA on Linear", llama, ORDERED, target_modules=tiny.LINEARS, use_dora=True),
    _composed(
        "dora-biased",
        "DoRA on Linear with a bias, which it leaves",
        biased_llama,
        ORDERED,
        target_modules=tiny.LINEARS,
        use_dora=True,
    ),
    _composed("dora-conv1d-hf", "DoRA on Conv1D", gpt2, ORDERED, target_modules=["c_attn", "c_proj"], use_dora=True),
    _composed(
        "dora-embedding", "DoRA on Embedding", llama, ORDERED, target_modules=["embed_tokens", "q_proj"], use_dora=True
    ),
    _composed(
        "dora-embedding-scaled",
        "DoRA on Embedding with embed_scale",
        gemma3,
        ORDERED,
        target_modules=["embed_tokens"],
        use_dora=True,
    ),
    *(
        Row(
            name=f"dora-conv{n}d",
            meaning=f"DoRA on Conv{n}d",
            make=lambda n=n: Convolutions(n),
            rules=ORDERED,
            config={"target_modules": ["first", "second"], "use_dora": True},
            run=image(n),
        )
        for n in (1, 2, 3)
    ),
    _composed("experts-gpt-oss", "target_parameters: experts stored [experts, in, out]", gpt_oss, ADDITIVE, **EXPERTS),
    _composed("experts-qwen3", "target_parameters: experts stored [experts, out, in]", qwen3_moe, ADDITIVE, **EXPERTS),
    _composed("experts-mixtral", "target_parameters: Mixtral's experts", mixtral, ADDITIVE, **EXPERTS),
    _composed("experts-llama4", "target_parameters: Llama 4's experts", llama4, ADDITIVE, **EXPERTS),
    _composed(
        "experts-ranks",
        "target_parameters with rank_pattern and alpha_pattern",
        qwen3_moe,
        ADDITIVE,
        **EXPERTS,
        rank_pattern={"experts.down_proj": 2},
        alpha_pattern={"layers.1.mlp.experts.gate_up_proj": 5},
    ),
    _composed(
        "parameter-matrix",
        "target_parameters on a matrix",
        llama,
        ADDITIVE,
        target_modules=["k_proj"],
        target_parameters=["q_proj.weight"],
        rank_pattern={"q_proj.weight": 2},
    ),
    _composed(
        "parameter-embedding",
        "target_parameters on an embedding",
        llama,
        ADDITIVE,
        target_modules=Q,
        target_parameters=["embed_tokens.weight"],
    ),
    *(
        _composed(
            f"all-linear-{name}",
            f"all-linear on {title}: its router too, by target_parameters",
            make,
            ADDITIVE,
            target_modules="all-linear",
        )
        for name, title, make in (
            ("mixtral", "Mixtral", mixtral),
            ("qwen3-moe", "Qwen 3 MoE", qwen3_moe),
            ("olmoe", "OLMoE", olmoe),
        )
    ),
    _composed(
        "velora",
        "VeLoRA: another backward pass, the same forward",
        llama,
        ADDITIVE,
        target_modules=Q,
        velora_config=lora.VeloraConfig(),
    ),
    _composed(
        "saved-modules",
        "modules_to_save: whole parameters",
        llama,
        MIXED,
        target_modules=Q,
        modules_to_save=["norm", "lm_head", "mlp"],
    ),
    Row(
        name="saved-buffers",
        meaning="modules_to_save of a BatchNorm: its averages and its counter too",
        make=Normed,
        run=image(2),
        rules=MIXED,
        config={"target_modules": ["first"], "modules_to_save": ["norm"]},
    ),
    _composed(
        "saved-tied-embedding",
        "modules_to_save of a tied embedding: the embedding alone changes",
        tied_llama,
        MIXED,
        target_modules=Q,
        modules_to_save=["embed_tokens"],
    ),
    _composed(
        "saved-tied-both",
        "modules_to_save with ensure_weight_tying: the embedding and the head",
        tied_llama,
        MIXED,
        target_modules=Q,
        modules_to_save=["embed_tokens"],
        ensure_weight_tying=True,
    ),
    _composed(
        "saved-head", "the head that PEFT saves for SEQ_CLS", classifier, MIXED, target_modules=Q, task_type="SEQ_CLS"
    ),
    _composed("bias-all", "bias='all': every bias", gpt2, MIXED, target_modules=["c_attn"], bias="all"),
    _composed(
        "bias-lora-only",
        "bias='lora_only': the biases of the targets",
        gpt2,
        MIXED,
        target_modules=["c_attn"],
        bias="lora_only",
    ),
    _composed(
        "tokens",
        "trainable_token_indices: rows of the embedding",
        llama,
        MIXED,
        target_modules=Q,
        trainable_token_indices=[3, 1, 90],
    ),
    _composed(
        "tokens-tied",
        "token rows of a tied embedding: the head's as well",
        tied_llama,
        MIXED,
        target_modules=Q,
        trainable_token_indices=[3, 1, 90],
    ),
    _composed(
        "tokens-head",
        "token rows of a tied head: the head's alone",
        tied_llama,
        MIXED,
        target_modules=Q,
        trainable_token_indices={"lm_head": [3, 1, 90]},
    ),
    _composed(
        "tokens-apart",
        "other token rows for an embedding and the head tied to it",
        tied_llama,
        MIXED,
        target_modules=Q,
        trainable_token_indices={"embed_tokens": [3, 1], "lm_head": [5]},
    ),
    _composed(
        "tokens-scaled",
        "token rows of an embedding with embed_scale",
        gemma3,
        MIXED,
        target_modules=Q,
        trainable_token_indices=[3, 1, 90],
    ),
    Row(
        name="tokens-and-head",
        meaning="LoRA on a tied head whose token rows change too: the rows first",
        make=tied_llama,
        rules=MIXED,
        config={"target_modules": ["lm_head"], "trainable_token_indices": [3, 1, 90]},
        chains_flatten=False,
    ),
    _composed(
        "mixed",
        "LoRA, lora_bias, biases, saved modules and token rows in one",
        gpt2,
        MIXED,
        target_modules=["c_attn"],
        lora_bias=True,
        bias="all",
        modules_to_save=["ln_f"],
        trainable_token_indices=[3, 1],
    ),
    _composed(
        "mixed-dora",
        "DoRA beside saved modules and biases",
        biased_llama,
        ("override", "ordered"),
        target_modules=Q,
        use_dora=True,
        bias="lora_only",
        modules_to_save=["norm"],
    ),
    _composed(
        "overrides-alone",
        "saved modules without any LoRA",
        llama,
        ("override",),
        target_modules="dummy-target-modules",
        modules_to_save=["norm"],
    ),
)
