"""Names that a base ties: what each level means over the levels above it, in every form, beside PEFT's own model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import Tensor, nn

from tests import tiny
from tests.composer.trips import Config, start, travel
from tests.peft_bases import gemma3, gpt2, opt, tied_llama


def bart() -> nn.Module:
    """A small BART, which has four names for one tensor."""
    config: Any = transformers.BartConfig
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "forced_eos_token_id": None}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return transformers.BartForConditionalGeneration(
        config(vocab_size=96, max_position_embeddings=64, **sizes, **heads, **tokens)
    )


def t5() -> nn.Module:
    """A small T5, whose forward reads the tie: no folder can have it apart."""
    config: Any = transformers.T5Config
    return transformers.T5ForConditionalGeneration(
        config(vocab_size=96, d_model=32, d_kv=8, d_ff=40, num_layers=1, num_heads=4, decoder_start_token_id=0)
    )


def translated(model: nn.Module) -> Tensor:
    found = model(input_ids=tiny.tokens(length=9), decoder_input_ids=tiny.tokens(length=6, seed=3)).logits
    assert isinstance(found, Tensor)
    return found


EMBEDDINGS = {tied_llama: "embed_tokens", gpt2: "wte", opt: "embed_tokens", gemma3: "embed_tokens"}


@pytest.mark.parametrize("make", EMBEDDINGS)
def test_a_head_with_rows_of_its_embedding_on_two_levels(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    rows = {EMBEDDINGS[make]: [5, 7]}
    config: Config = {"target_modules": ["lm_head"], "trainable_token_indices": rows}
    for name, difference in travel(start(make(), tmp_path), [config, config, config]):
        assert difference < 1e-9, name


@pytest.mark.parametrize("make", EMBEDDINGS)
def test_an_embedding_and_then_its_head_with_rows(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    rows = {EMBEDDINGS[make]: [5, 7]}
    configs: list[Config] = [
        {"target_modules": [EMBEDDINGS[make]]},
        {"target_modules": ["lm_head"], "trainable_token_indices": rows},
    ]
    for name, difference in travel(start(make(), tmp_path), configs):
        assert difference < 1e-9, name


@pytest.mark.parametrize(
    "rows", [[5, 7], {"encoder.embed_tokens": [5, 7]}, {"decoder.embed_tokens": [5, 7]}, {"lm_head": [5, 7]}], ids=str
)
def test_a_written_folder_unties_every_name(rows: object, tmp_path: Path) -> None:
    configs: list[Config] = [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": {"shared": rows} if isinstance(rows, list) else rows},
        {"target_modules": ["lm_head", "shared"]},
    ]
    for name, difference in travel(start(bart(), tmp_path, run=translated), configs):
        assert difference < 1e-9, name
