"""Adapters as tools and older versions of PEFT write them: the config, the file, and what lies beside them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.peft_bases import quiet

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Tensors = dict[str, Tensor]


def as_it_is(_: Tensors) -> None:
    """Changes nothing."""


@dataclass(frozen=True)
class Written:
    """How an adapter was trained and written: the base's dtype, the training's, PEFT's options, and what differs then.

    `beside` names files that the tool leaves in the folder. If `is_rounded`, the file has a copy of the head that was
    rounded for the training. PEFT would write it over the base's own head; what is composed is the base, as PEFT loads
    the file without the copy.
    """

    options: dict[str, Any] = field(default_factory=dict)
    base: torch.dtype = torch.float32
    training: torch.dtype = torch.float32
    tensors: Callable[[Tensors], object] = as_it_is
    config: Callable[[dict[str, Any]], object] = as_it_is
    is_rounded: bool = False
    beside: tuple[str, ...] = ()

    def save(self, base: Path, directory: Path) -> Path:
        """Train random values with PEFT on the base, and write the folder as the tool did."""
        torch.manual_seed(3)
        loader: Any = transformers.AutoModelForCausalLM
        with quiet():
            settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | self.options
            model = loader.from_pretrained(base, dtype=self.training)
            tuned: Any = peft.get_peft_model(model, peft.LoraConfig(**settings))
            for name, parameter in tuned.named_parameters():
                if "lora_magnitude" in name:
                    parameter.data *= 1.25
                elif "lora_" in name:
                    parameter.data = torch.randn_like(parameter) * 0.1
            tuned.save_pretrained(directory)
        tensors, config = load_file(directory / WEIGHTS), json.loads((directory / CONFIG).read_text())
        self.tensors(tensors)
        self.config(config)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        (directory / CONFIG).write_text(json.dumps(config))
        for name in self.beside:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(b"not an adapter")
        return directory


def halve_b(tensors: Tensors) -> None:
    for key in [key for key in tensors if "lora_B" in key]:
        tensors[key] = tensors[key].bfloat16()


def name_magnitudes_as_modules(tensors: Tensors) -> None:
    for key in [key for key in tensors if key.endswith("lora_magnitude_vector")]:
        tensors[f"{key}.weight"] = tensors.pop(key)


# The fields of LoRA's config that each version of PEFT added, from the releases on PyPI; a version writes all it has.
FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "0.2": (
        *("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha", "lora_dropout"),
        *("modules_to_save", "peft_type", "r", "target_modules", "task_type"),
    ),
    "0.3": ("init_lora_weights",),
    "0.4": ("auto_mapping", "layers_pattern", "layers_to_transform", "revision"),
    "0.6": ("alpha_pattern", "rank_pattern"),
    "0.7": ("loftq_config", "megatron_config", "megatron_core"),
    "0.8": ("use_rslora",),
    "0.9": ("use_dora",),
    "0.10": ("layer_replication",),
    "0.14": ("eva_config", "exclude_modules", "lora_bias"),
    "0.15": ("corda_config", "trainable_token_indices"),
    "0.16": ("qalora_group_size", "use_qalora"),
    "0.17": ("target_parameters",),
    "0.18": ("alora_invocation_tokens", "arrow_config", "ensure_weight_tying", "peft_version"),
    "0.19": ("lora_ga_config", "use_bdlora"),
    "0.20": ("monteclora_config", "velora_config"),
}


def as_peft_wrote(version: str, **other: Any) -> Callable[[dict[str, Any]], None]:
    """Keeps the fields that `version` of PEFT had, and adds `other` ones that later versions have not."""

    def change(config: dict[str, Any]) -> None:
        versions = list(FIELDS)
        known = {name for older in versions[: versions.index(version) + 1] for name in FIELDS[older]}
        kept = {key: value for key, value in config.items() if key in known}
        if "peft_version" in kept:
            kept["peft_version"] = f"{version}.0"
        config.clear()
        config.update(kept, **other)

    return change


def says(**fields: Any) -> Callable[[dict[str, Any]], None]:
    """Changes fields of the config."""
    return lambda config: config.update(fields)


# Unsloth chooses modules by one expression, which re2 reads; it notes itself in auto_mapping.
UNSLOTH: Final = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|down_proj)))"
)
UNSLOTH_MAPPING: Final = {
    "base_model_class": "LlamaForCausalLM",
    "parent_library": "transformers.models.llama.modeling_llama",
    "unsloth_fixed": True,
}
SWIFT: Final = r"^(model(?=\.).*\.(q_proj|down_proj))$"
TRAINER: Final = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin")

DESCRIBED = {"transformers_version": "4.44.0", "learning_rate": 2e-4, "loraplus_lr_ratio": 16.0, "dataset": ["a", "b"]}
ENDS = ["lm_head", "embed_tokens"]

WRITTEN: dict[str, Written] = {
    "A in float32 and B in bfloat16": Written(tensors=halve_b),
    "DoRA with lora_magnitude_vector.weight": Written({"use_dora": True}, tensors=name_magnitudes_as_modules),
    "fields that describe": Written(config=lambda config: config.update(DESCRIBED)),
    **{f"PEFT {version}": Written(config=as_peft_wrote(version)) for version in FIELDS if version != "0.2"},
    "PEFT 0.2": Written(config=as_peft_wrote("0.2", enable_lora=None, merge_weights=False)),
    "Unsloth: an expression for target_modules": Written(
        {"target_modules": UNSLOTH}, config=says(auto_mapping=UNSLOTH_MAPPING), beside=("chat_template.jinja",)
    ),
    "Unsloth: the head and the embedding trained whole": Written(
        {"modules_to_save": ENDS}, config=says(auto_mapping=UNSLOTH_MAPPING)
    ),
    "ms-swift: a lookahead in target_modules, and its own fields": Written(
        {"target_modules": SWIFT},
        config=says(lora_dtype=None, lorap_lr_ratio=None, lorap_emb_lr=1e-6),
        beside=("additional_config.json", "args.json", *TRAINER),
    ),
    "axolotl: lora_target_linear, with the model's config and tokenizer beside": Written(
        {"target_modules": "all-linear"},
        beside=("config.json", "tokenizer.json", "tokenizer_config.json", "checkpoint-2/adapter_model.safetensors"),
    ),
    "LLaMA-Factory: additional_target and rsLoRA": Written(
        {"modules_to_save": ["norm"], "use_rslora": True, "exclude_modules": []},
        beside=("trainer_log.jsonl", "all_results.json", "training_loss.png", *TRAINER),
    ),
    "TRL: DPO with the reference adapter in a folder inside": Written(
        beside=("ref/adapter_model.safetensors", "ref/adapter_config.json", "training_args.bin")
    ),
    "DeepSpeed ZeRO: a Trainer's checkpoint with its shards beside": Written(
        beside=("global_step2/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "zero_to_fp32.py", "latest", *TRAINER)
    ),
    "FSDP: a full state dict with the optimizer's shards beside": Written(
        beside=("optimizer_0/__0_0.distcp", "pytorch_model_fsdp_0/__0_0.distcp", *TRAINER)
    ),
    "the head and the embedding, trained in float32 on a bfloat16 base": Written(
        {"target_modules": ENDS}, base=torch.bfloat16
    ),
    "the head and the embedding, trained in bfloat16 on a float32 base": Written(
        {"target_modules": ENDS}, training=torch.bfloat16, is_rounded=True
    ),
    "the head, trained in float16 on a bfloat16 base": Written(
        {"target_modules": ["lm_head"]}, base=torch.bfloat16, training=torch.float16
    ),
}
