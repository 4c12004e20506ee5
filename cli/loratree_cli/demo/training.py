"""A plain training loop, for a base from scratch and for a LoRA adapter on a model; torch."""

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
    """Train the base from scratch and save it, with its tokenizer, into `directory`."""
    _seed(recipe, recipe.seed)
    model = new_model(recipe)
    train(model, batches(recipe, 0), recipe.base_rate, on_step)
    model.save_pretrained(directory)
    save_tokenizer(directory)


def train_adapter(
    recipe: Recipe, depth: int, rank: int, parent: Path, directory: Path, on_step: Callable[[float], None]
) -> None:
    """Train a LoRA adapter of `rank` on all linear layers of the model in `parent`, and save it into `directory`."""
    from peft import LoraConfig, get_peft_model

    _seed(recipe, recipe.seed + depth)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_model(parent), config)
    train(model, batches(recipe, depth), recipe.adapter_rate, on_step)
    model.save_pretrained(str(directory))


def new_model(recipe: Recipe) -> "LlamaForCausalLM":
    """Create a byte-level Llama with random weights."""
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
    """Load the model in `directory`, in float32 and in evaluation mode."""
    from transformers import LlamaForCausalLM

    _hide_bars()
    return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32)  # from_pretrained sets evaluation mode


def batches(recipe: Recipe, depth: int) -> torch.Tensor:
    """Return a level's lesson as token ids, [steps, batch, length]."""
    rows = pack(recipe.lesson(depth), recipe.length)
    steps = recipe.steps(depth)
    return rows[: steps * recipe.batch].view(steps, recipe.batch, recipe.length)


def pack(documents: list[str], length: int) -> torch.Tensor:
    """Join the documents, an end token before each, and cut them into rows [rows, length] without the remainder."""
    ids = [token for document in documents for token in (END_ID, *tokens(document))]
    rows = len(ids) // length
    return torch.tensor(ids[: rows * length]).view(rows, length)


def train(model: torch.nn.Module, rows: torch.Tensor, rate: float, on_step: Callable[[float], None]) -> None:
    """Take one AdamW step per batch of `rows` [steps, batch, length]; `on_step` is called with each batch's loss."""
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


def _seed(recipe: Recipe, seed: int) -> None:
    """Set the threads and the seed, which together decide the weights."""
    _hide_bars()
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(seed)


def _hide_bars() -> None:
    """Turn off the progress bar that transformers draws for each file it reads or writes."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def share(step: int, steps: int) -> float:
    """Return the share of the peak rate: linear up over the first tenth, and down a cosine to 0."""
    return min(1.0, (step + 1) / (WARM_UP * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
