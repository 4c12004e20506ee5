"""Checkpoints as they lie on the hub: older names, prefixes that are there or not, and tensors that no model reads."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests import peft_bases, tiny

Rename = Callable[[str], str]
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class HubLayout:
    """A model, the names that its checkpoint on the hub has instead, and what lies beside in that checkpoint."""

    build: Callable[[], nn.Module]
    rename: Rename = str
    leftovers: tuple[str, ...] = ()
    names: str = "the model's own names"

    def says(self) -> str:
        """What the files hold otherwise, in words."""
        beside = f"; {', '.join(f'`{name}`' for name in self.leftovers)} left out" if self.leftovers else ""
        return self.names + beside

    def save(self, directory: Path) -> Path:
        """Save the model in the hub's layout, in bytes that save_pretrained would also write."""
        torch.manual_seed(0)
        model: Any = self.build()
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)  # biases are zero when they are made
        with peft_bases.quiet():
            model.save_pretrained(directory)
        tensors = {self.rename(name): value for name, value in load_file(directory / WEIGHTS).items()}
        tensors |= {name: torch.arange(4.0) for name in self.leftovers}
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        return directory


def without(prefix: str) -> Rename:
    return lambda name: name.removeprefix(prefix)


def replacing(*pairs: tuple[str, str]) -> Rename:
    def rename(name: str) -> str:
        for pattern, other in pairs:
            name = re.sub(pattern, other, name)
        return name

    return rename


TENSORFLOW: Rename = replacing((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))
POOLER = ("bert.pooler.dense.bias", "bert.pooler.dense.weight")
SIZES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}


def bert_model() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(intermediate_size=56, **SIZES))


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(intermediate_size=56, max_position_embeddings=66, pad_token_id=1, **SIZES)
    return transformers.RobertaForMaskedLM(config)


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(vocab_size=96, dim=32, hidden_dim=56, n_layers=2, n_heads=4)
    return transformers.DistilBertForMaskedLM(config)


def gpt_neo() -> nn.Module:
    settings: dict[str, Any] = {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "vocab_size": 96}
    config = transformers.GPTNeoConfig(
        attention_types=[[["global", "local"], 1]], max_position_embeddings=64, window_size=8, **settings
    )
    return transformers.GPTNeoForCausalLM(config)


def bloom() -> nn.Module:
    return transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=96, hidden_size=32, n_layer=2, n_head=4))


def wav2vec2() -> nn.Module:
    config = transformers.Wav2Vec2Config(
        intermediate_size=56,
        conv_dim=(32, 32),
        conv_kernel=(3, 3),
        conv_stride=(2, 2),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        **SIZES,
    )
    return transformers.Wav2Vec2ForCTC(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=8, d_ff=56, num_layers=1, num_heads=4, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config)


LAYOUTS: dict[str, HubLayout] = {
    "gpt2": HubLayout(
        peft_bases.gpt2,
        without("transformer."),
        ("h.0.attn.bias", "h.1.attn.bias", "h.1.attn.masked_bias"),
        "no `transformer.` prefix",
    ),
    "Llama 2": HubLayout(
        peft_bases.llama, str, tuple(f"model.layers.{n}.self_attn.rotary_emb.inv_freq" for n in range(2))
    ),
    "Llama without its prefix": HubLayout(peft_bases.tied_llama, without("model."), names="no `model.` prefix"),
    "bert-base-uncased": HubLayout(
        peft_bases.bert,
        TENSORFLOW,
        (*POOLER, "cls.seq_relationship.bias", "cls.seq_relationship.weight"),
        "LayerNorm's `gamma` and `beta`",
    ),
    "all-MiniLM-L6-v2, BGE": HubLayout(bert_model, str, ("embeddings.position_ids",)),
    "an encoder in a checkpoint with a head": HubLayout(
        bert_model,
        lambda name: f"bert.{name}",
        ("bert.embeddings.position_ids", "cls.predictions.bias"),
        "a `bert.` prefix",
    ),
    "roberta-base": HubLayout(
        roberta,
        str,
        ("roberta.embeddings.position_ids", "roberta.pooler.dense.bias", "roberta.pooler.dense.weight"),
    ),
    "distilbert-base-uncased": HubLayout(distilbert, str, ("distilbert.embeddings.position_ids",)),
    "gpt-neo": HubLayout(
        gpt_neo, str, ("transformer.h.0.attn.attention.bias", "transformer.h.0.attn.attention.masked_bias")
    ),
    "bloom": HubLayout(bloom, without("transformer."), names="no `transformer.` prefix"),
    "opt": HubLayout(peft_bases.opt, replacing((r"^model\.decoder", "decoder")), names="no `model.` prefix"),
    "wav2vec2-base-960h": HubLayout(
        wav2vec2,
        replacing(
            (r"parametrizations\.weight\.original0", "weight_g"), (r"parametrizations\.weight\.original1", "weight_v")
        ),
        ("wav2vec2.quantizer.codevectors",),
        "weight norm's `weight_g` and `weight_v`",
    ),
    "t5-small": HubLayout(t5, str, ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)),
}


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """Change the tensors of a checkpoint of one file."""
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    return directory


def configure(directory: Path, **changes: object) -> Path:
    """Change a checkpoint's config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return directory


def run(model: nn.Module) -> Tensor:
    """What the model gives for some fixed input: logits, or an encoder's states."""
    generator = torch.Generator().manual_seed(5)
    if model.config.model_type == "wav2vec2":
        found = model(torch.randn((2, 400), generator=generator).to(next(model.parameters()).dtype))
    elif model.config.is_encoder_decoder:
        found = model(input_ids=tiny.tokens(length=9), decoder_input_ids=tiny.tokens(length=7, seed=8))
    else:
        found = model(input_ids=tiny.tokens(length=9))
    value = found.logits if hasattr(found, "logits") else found.last_hidden_state
    assert isinstance(value, Tensor)
    return value
