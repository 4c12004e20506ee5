"""Small real models and adapters, written by transformers and PEFT themselves."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama_config(**overrides: Any) -> transformers.LlamaConfig:
    """A Llama of two layers, grouped-query attention, nothing square: every transposition shows."""
    settings: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    return transformers.LlamaConfig(**(settings | overrides))


def llama(directory: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
    """Saves a small random Llama and returns its directory."""
    torch.manual_seed(seed)
    return _saved(transformers.LlamaForCausalLM(llama_config(**overrides)).to(dtype), directory)


def gpt2(directory: Path, *, seed: int = 0) -> Path:
    """Saves a small random GPT-2, whose linear layers are Conv1D, and returns its directory."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return _saved(transformers.GPT2LMHeadModel(config), directory)


def adapter(
    base: Path,
    directory: Path,
    *,
    seed: int = 1,
    rank: int = 4,
    alpha: float | None = None,
    targets: list[str] | str | None = None,
    dtype: torch.dtype = torch.float32,
    std: float = 0.1,
    change: Callable[[peft.PeftModel], None] | None = None,
    **config: Any,
) -> Path:
    """Saves a PEFT LoRA adapter with random, non-zero A and B over the model in `base`, and returns its directory."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    settings: dict[str, Any] = {"target_modules": targets or LINEARS, "task_type": "CAUSAL_LM"} | config
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, **settings))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn_like(parameter) * std).to(dtype)
    if change is not None:
        change(tuned)
    with warnings.catch_warnings():
        # PEFT tells that it saves the base's lm_head beside a LoRA on it.
        warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")
        tuned.save_pretrained(directory)
    return directory


def tokens(*, batch: int = 3, length: int = 17, vocabulary: int = 96, seed: int = 7) -> torch.Tensor:
    """Random token ids, [batch, length]."""
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def _saved(model: transformers.PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory
