"""A Llama in float64, written out, with W + Σ sᵢBᵢAᵢ summed in float64: the reference for every other form.

It shares no code with the composer, with PEFT or with transformers. It computes the angles of the rotary embedding in
float32, as in training and use of every such model. Exact angles move the demo's logits by 1.2e-5 of the largest
(measured), which says nothing about composing; with float32 angles all forms stay within about 4e-6.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import silu

Weights = dict[str, torch.Tensor]


def reference_logits(base: Path, adapters: Sequence[Path], ids: torch.Tensor) -> torch.Tensor:
    """Compute the float64 logits [batch, length, vocabulary] of the model in `base` with `adapters` added.

    ids: [batch, length].
    """
    config = json.loads((base / "config.json").read_text())
    return forward(composed(base, adapters), config, ids)


def composed(base: Path, adapters: Sequence[Path]) -> Weights:
    """Compute W + Σ (α/r) B A for each weight, in float64."""
    from safetensors.torch import load_file

    weights = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    for adapter in adapters:
        config = json.loads((adapter / "adapter_config.json").read_text())
        factors = {name: tensor.double() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
        for name in (name for name in factors if name.endswith(".lora_A.weight")):
            a, b = factors[name], factors[name.replace("lora_A", "lora_B")]  # a: [rank, in]  b: [out, rank]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            weights[f"{module}.weight"] += config["lora_alpha"] / config["r"] * (b @ a)
    return weights


def forward(weights: Weights, config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """Run the embedding, the layers (attention, gated feed-forward) on a residual stream, a norm and the head."""
    epsilon = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][ids]  # [batch, length, hidden]
    for layer in range(config["num_hidden_layers"]):
        own = {name.removeprefix(f"model.layers.{layer}."): tensor for name, tensor in weights.items()}
        x = x + _attention(own, config, _norm(x, own["input_layernorm.weight"], epsilon))
        x = x + _feed_forward(own, _norm(x, own["post_attention_layernorm.weight"], epsilon))
    return _norm(x, weights["model.norm.weight"], epsilon) @ weights["lm_head.weight"].T


def _norm(x: torch.Tensor, gain: torch.Tensor, epsilon: float) -> torch.Tensor:
    return gain * x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt()


def _feed_forward(own: Weights, x: torch.Tensor) -> torch.Tensor:
    gated = silu(x @ own["mlp.gate_proj.weight"].T) * (x @ own["mlp.up_proj.weight"].T)
    return gated @ own["mlp.down_proj.weight"].T


def _attention(own: Weights, config: dict[str, Any], x: torch.Tensor) -> torch.Tensor:
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    theta = config["rope_parameters"]["rope_theta"]
    query = _rotate(_split_heads(x @ own["self_attn.q_proj.weight"].T, heads), theta)  # [batch, heads, length, size]
    key = _rotate(_split_heads(x @ own["self_attn.k_proj.weight"].T, groups), theta)
    value = _split_heads(x @ own["self_attn.v_proj.weight"].T, groups)
    key, value = (part.repeat_interleave(heads // groups, dim=1) for part in (key, value))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ value
    joined: torch.Tensor = mixed.transpose(1, 2).flatten(2)
    return joined @ own["self_attn.o_proj.weight"].T


def _split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(1, 2)


def _rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotate (x₁, x₂), the halves of each head, by the angles position·θ^(−2i/size) (Su et al., RoFormer)."""
    length, size = x.shape[-2:]
    speed = 1.0 / theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    angle = (torch.arange(length, dtype=torch.float32)[:, None] * speed).double()  # [length, size/2]
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
