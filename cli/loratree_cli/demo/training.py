"""A plain training loop, for the base from scratch and for a LoRA adapter over a model; torch."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loratree_cli.demo.recipe import Recipe
from loratree_cli.demo.tokenizer import END_ID, VOCABULARY, save_tokenizer, tokens

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

WARM_UP = 0.1
CLIP = 1.0


def train_base(recipe: Recipe, directory: Path, on_step: Callable[[float], None]) -> None:
    """Trains the base from scratch and saves it, with its tokenizer, into `directory`."""
    _settle(recipe, recipe.seed)
    model = new_model(recipe)
    train(model, batches(recipe, 0), recipe.base_rate, on_step)
    model.save_pretrained(directory)
    save_tokenizer(directory)


def train_adapter(
    recipe: Recipe, depth: int, rank: int, parent: Path, directory: Path, on_step: Callable[[float], None]
) -> None:
    """Trains a LoRA adapter of `rank` on all linear layers of the model in `parent`, and saves it into `directory`."""
    from peft import LoraConfig, get_peft_model

    _settle(recipe, recipe.seed + depth)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_model(parent), config)
    train(model, batches(recipe, depth), recipe.adapter_rate, on_step)
    model.save_pretrained(str(directory))


def new_model(recipe: Recipe) -> "LlamaForCausalLM":
    """A byte-level Llama with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=recipe.length,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=END_ID,
    )
    return LlamaForCausalLM(config)


def load_model(directory: Path) -> "LlamaForCausalLM":
    """The model in `directory`, in float32 and for evaluation."""
    from transformers import LlamaForCausalLM

    _without_bars()
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)  # transformers evaluates by default


def batches(recipe: Recipe, depth: int) -> torch.Tensor:
    """A level's lesson as token ids, [steps, batch, length]."""
    rows = pack(recipe.lesson(depth), recipe.length)
    steps = recipe.steps(depth)
    return rows[: steps * recipe.batch].view(steps, recipe.batch, recipe.length)


def pack(documents: list[str], length: int) -> torch.Tensor:
    """The documents one after the other, an end token before each, as rows [rows, length]; what is over is left out."""
    ids = [token for document in documents for token in (END_ID, *tokens(document))]
    rows = len(ids) // length
    return torch.tensor(ids[: rows * length]).view(rows, length)


def train(model: torch.nn.Module, rows: torch.Tensor, rate: float, on_step: Callable[[float], None]) -> None:
    """One AdamW step for each batch of `rows` [steps, batch, length]; `on_step` is told each batch's loss."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, len(rows)))
    model.train()
    for batch in rows:
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        on_step(loss.item())
    model.eval()


def _settle(recipe: Recipe, seed: int) -> None:
    """The same threads and the same seed give the same weights."""
    _without_bars()
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(seed)


def _without_bars() -> None:
    """Keeps transformers from drawing a bar for every file that it reads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def share(step: int, steps: int) -> float:
    """The share of the peak rate: up linearly over the first tenth, and down a cosine to 0."""
    return min(1.0, (step + 1) / (WARM_UP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
