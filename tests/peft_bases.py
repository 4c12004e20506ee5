"""Tiny bases, one for each kind of layer and of tie, and what runs them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from tests import tiny

Run = Callable[[nn.Module], Tensor]


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT and transformers warn of what they do; these files are about what they write."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def logits(model: nn.Module) -> Tensor:
    """The model's logits for some fixed tokens, [batch, length, vocabulary]."""
    found = model(tiny.tokens(length=9)).logits
    assert isinstance(found, Tensor)
    return found


def _noise(model: nn.Module, *shape: int) -> Tensor:
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return noise.to(next(model.parameters()).dtype)


def image(dimensions: int) -> Run:
    def run(model: nn.Module) -> Tensor:
        shape = (2, 4, *[9, 8, 7][:dimensions])
        found = model(_noise(model, *shape))
        assert isinstance(found, Tensor)
        return found

    return run


def sequence(model: nn.Module) -> Tensor:
    found = model(_noise(model, 2, 5, 8))
    assert isinstance(found, Tensor)
    return found


class Convolutions(nn.Module):
    """Two convolutions, of which the second has another stride and groups."""

    def __init__(self, dimensions: int, *, groups: int = 1, **settings: Any) -> None:
        super().__init__()
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        kernel = (3, 2, 2)[:dimensions]
        self.first = kind(4, 6, kernel, padding=1, **settings)
        self.second = kind(6, 8, kernel, stride=2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 4, …]"""
        y = self.second(torch.tanh(self.first(x)))
        assert isinstance(y, Tensor)
        return y


class Normed(nn.Module):
    """A convolution and a BatchNorm, which counts and averages in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 4, height, width]"""
        y = self.norm(self.first(x))
        assert isinstance(y, Tensor)
        return y


class Attention(nn.Module):
    """A linear layer and torch's own attention over it."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, length, 8]"""
        y = torch.tanh(self.proj(x))
        attended = self.attn(y, y, y, need_weights=False)[0]
        assert isinstance(attended, Tensor)
        return attended


class Encoder(nn.Module):
    """Two of torch's TransformerEncoderLayer, which in eval mode hand their weights to one kernel, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True) for _ in range(2)))
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, length, 8]"""
        y = self.last(self.layers(x))
        assert isinstance(y, Tensor)
        return y


class Decoder(nn.Module):
    """One of torch's TransformerDecoderLayer, which calls its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, length, 8]"""
        y = self.layer(x, torch.tanh(x))
        assert isinstance(y, Tensor)
        return y


def llama(**settings: Any) -> nn.Module:
    """A small Llama."""
    return transformers.LlamaForCausalLM(tiny.llama_config(**settings))


def tied_llama() -> nn.Module:
    """A small Llama whose lm_head is its embedding."""
    return llama(tie_word_embeddings=True)


def biased_llama() -> nn.Module:
    """A small Llama with biases on all of its linear layers but the head."""
    return llama(attention_bias=True, mlp_bias=True)


def classifier(*, num_labels: int = 3) -> nn.Module:
    """A small Llama with a classification head."""
    return transformers.LlamaForSequenceClassification(tiny.llama_config(num_labels=num_labels, pad_token_id=0))


def gpt2() -> nn.Module:
    """A small GPT-2, whose linear layers are Conv1D and whose embeddings are tied."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=96, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
        )
    )


def gemma3() -> nn.Module:
    """A small Gemma 3, whose embedding multiplies its rows, tied to the head."""
    config = transformers.Gemma3TextConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        sliding_window=8,
    )
    return transformers.Gemma3ForCausalLM(config)


def experts(config: type[Any], model: type[nn.Module], **settings: Any) -> nn.Module:
    common: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "num_experts_per_tok": 2,
        "num_local_experts": 4,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "experts_implementation": "eager",  # the grouped product knows no float64
    }
    return model(config(**(common | settings)))


def gpt_oss(**settings: Any) -> nn.Module:
    """A small gpt-oss: experts stored [experts, in, out], those of down_proj square as in the real ones."""
    square = {"intermediate_size": 16} | settings
    return experts(transformers.GptOssConfig, transformers.GptOssForCausalLM, **square)


def qwen3_moe(**settings: Any) -> nn.Module:
    """A small Qwen 3 MoE: experts stored [experts, out, in]."""
    sizes = {"num_experts": 4, "moe_intermediate_size": 24, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return experts(transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM, **(sizes | settings))


def mixtral() -> nn.Module:
    """A small Mixtral: experts stored [experts, out, in]."""
    return experts(transformers.MixtralConfig, transformers.MixtralForCausalLM)


def olmoe() -> nn.Module:
    """A small OLMoE: experts stored [experts, out, in]."""
    return experts(transformers.OlmoeConfig, transformers.OlmoeForCausalLM, num_experts=4, head_dim=4)


def llama4() -> nn.Module:
    """A small Llama 4: experts stored [experts, in, out], which PEFT takes the other way round."""
    settings = {
        "intermediate_size_mlp": 24,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 32,
        "interleave_moe_layer_step": 1,
    }
    return experts(transformers.Llama4TextConfig, transformers.Llama4ForCausalLM, **settings)


class Odd(nn.Module):
    """Layers whose settings or class PEFT's LoRA does not follow, and parameters that it takes by name."""

    def __init__(self) -> None:
        super().__init__()
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.reflected = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.renormed = nn.Embedding(10, 8, max_norm=1.0)
        self.offset = transformers.models.opt.modeling_opt.OPTLearnedPositionalEmbedding(10, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.matrices = Matrices()
        self.linear = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 8]"""
        y = self.matrices(self.linear(x))
        assert isinstance(y, Tensor)
        return y


class Matrices(nn.Module):
    """Parameters of its own, of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 8, 4)), nn.Parameter(torch.randn(3, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 8]"""
        return x @ self.up[0] @ self.down[0]


def opt() -> nn.Module:
    """A small OPT, whose positions are an Embedding that counts from 2."""
    config = transformers.OPTConfig(
        vocab_size=96, hidden_size=32, ffn_dim=56, num_hidden_layers=1, num_attention_heads=4, word_embed_proj_dim=32
    )
    return transformers.OPTForCausalLM(config)


def bert() -> nn.Module:
    """A small BERT whose head is tied to its embedding and has a bias."""
    config = transformers.BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=56
    )
    return transformers.BertForMaskedLM(config)


def marian() -> nn.Module:
    """A small Marian, whose positions are computed and never saved."""
    config: Any = transformers.MarianConfig
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    tokens = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 0, "forced_eos_token_id": None}
    return transformers.MarianMTModel(config(vocab_size=96, max_position_embeddings=64, **sizes, **heads, **tokens))
