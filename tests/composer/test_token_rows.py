"""Token rows (PEFT's trainable tokens) of models whose names of one tensor PEFT does not all train together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from loratree_composer.base.manifest import manifest_of_module
from loratree_registry.errors import Invalid
from tests import peft_bases, tiny
from tests.composer.trips import Config, start, travel

TEXT: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": 96,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 64,
}


def made(name: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**settings))
        return model

    return make


def text(model: nn.Module) -> Tensor:
    return _logits(model(input_ids=tiny.tokens(length=9)))


def pairs(model: nn.Module) -> Tensor:
    return _logits(model(input_ids=tiny.tokens(length=9), decoder_input_ids=tiny.tokens(length=6, seed=8)))


def entities(model: nn.Module) -> Tensor:
    places = torch.tensor([[[1, 2], [3, 4]]] * 3)
    ids = torch.tensor([[4, 5], [6, 7], [5, 6]])
    found = model(input_ids=tiny.tokens(length=9), entity_ids=ids, entity_position_ids=places).entity_logits
    assert isinstance(found, Tensor)
    return found


def letters(model: nn.Module) -> Tensor:
    return _logits(model(inputs=tiny.tokens(length=20)))


def _logits(found: Any) -> Tensor:
    assert isinstance(found.logits, Tensor)
    return found.logits


ENCODER = TEXT | {"intermediate_size": 40, "max_position_embeddings": 64, "pad_token_id": 0, "type_vocab_size": 0}
GEMMA = TEXT | {"intermediate_size": 40, "num_key_value_heads": 2, "head_dim": 8}
DEBERTA = "DebertaForMaskedLM", "DebertaConfig"
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor], Config]] = {
    "Marian, a list": (peft_bases.marian, pairs, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 7]}),
    "Marian, shared": (
        peft_bases.marian,
        pairs,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"shared": [5, 7]}},
    ),
    "BART, an ending of two modules": (
        made("BartForConditionalGeneration", "BartConfig", **SEQ2SEQ),
        pairs,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 7]}},
    ),
    "Luke, entities": (
        made(
            "LukeForMaskedLM",
            "LukeConfig",
            **(ENCODER | {"type_vocab_size": 2, "entity_vocab_size": 50, "entity_emb_size": 16}),
        ),
        entities,
        {"target_modules": ["query"], "trainable_token_indices": {"entity_embeddings.entity_embeddings": [5, 7]}},
    ),
    "T5Gemma, decoder": (
        made(
            "T5GemmaForConditionalGeneration",
            "T5GemmaConfig",
            encoder=GEMMA,
            decoder=GEMMA | {"cross_attention_hidden_size": 32},
            vocab_size=96,
        ),
        pairs,
        {"target_modules": ["q_proj"], "trainable_token_indices": {"decoder.embed_tokens": [5, 7]}},
    ),
    "DeBERTa, whose head multiplies by the embedding": (
        made(*DEBERTA, **(ENCODER | {"legacy": False})),
        text,
        {"target_modules": ["in_proj"], "trainable_token_indices": {"word_embeddings": [5, 7]}},
    ),
    "DeBERTa, LoRA on an embedding that a tied head has": (
        made(*DEBERTA, **ENCODER),
        text,
        {"target_modules": ["word_embeddings"]},
    ),
    "Perceiver, whose head multiplies by the embedding": (
        made(
            "PerceiverForMaskedLM",
            "PerceiverConfig",
            vocab_size=96,
            d_model=16,
            d_latents=16,
            num_latents=4,
            num_blocks=1,
            num_self_attends_per_block=1,
            num_self_attention_heads=2,
            num_cross_attention_heads=2,
            qk_channels=16,
            v_channels=16,
            max_position_embeddings=20,
        ),
        letters,
        {
            "target_modules": ["decoding_cross_attention.attention.output.dense"],
            "trainable_token_indices": {"perceiver.input_preprocessor.embeddings": [30, 61]},
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_form_replaces_the_rows_that_peft_replaces(name: str, tmp_path: Path) -> None:
    make, run, config = MODELS[name]
    found = dict(travel(start(make(), tmp_path, run=run), [config]))
    assert {"level 1, merged", "level 1, stacked"} <= {key.partition(" (")[0] for key in found}, found
    assert max(found.values()) < 1e-9, found


def test_the_names_that_peft_trains_with_the_input_embedding_are_recorded() -> None:
    for make, embedding, ties in (
        (peft_bases.tied_llama, "model.embed_tokens", ("lm_head",)),
        (peft_bases.llama, "model.embed_tokens", ()),
        (MODELS["BART, an ending of two modules"][0], "model.shared", None),
        (MODELS["Luke, entities"][0], "luke.embeddings.word_embeddings", None),
    ):
        manifest = manifest_of_module(make())
        assert manifest.input_embedding == embedding
        if ties is not None:
            assert manifest.token_ties == ties


@pytest.mark.parametrize(
    ("make", "config", "inner"),
    [
        (peft_bases.bert, {"target_modules": ["query"], "modules_to_save": ["embeddings"]}, "position_embeddings"),
        (peft_bases.llama, {"target_modules": ["q_proj"], "modules_to_save": ["mlp", "mlp.up_proj"]}, "mlp.up_proj"),
    ],
)
def test_a_saved_module_inside_a_saved_module_is_refused(
    make: Callable[[], nn.Module], config: Config, inner: str, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match=rf"modules_to_save of a module and of one inside it is not composed \(.*{inner}"):
        dict(travel(start(make(), tmp_path, run=text), [config]))
