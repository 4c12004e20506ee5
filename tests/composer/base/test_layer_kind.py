import copy
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import linear
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from loratree_composer.adapters.adapter import programs_of
from loratree_composer.base.layer_kind import kind_of
from loratree_composer.base.manifest import manifest_of_module
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.stack import Stack
from loratree_registry.errors import Invalid
from tests import peft_bases
from tests.composer import chains
from tests.composer.reference_sums import adding, random_delta


class Plain(nn.Linear):
    """A subclass that computes what Linear does."""


class Gated(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(super().forward(x))


class Turned(Conv1D):  # type: ignore[misc]
    """A subclass that computes what Conv1D does."""


def foreign(name: str, base: type[nn.Module] = nn.Module) -> nn.Module:
    """A layer of a class that is only named so, and computes W x twice."""

    def forward(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.weight, torch.Tensor)
        return linear(linear(x, self.weight), self.weight)

    layer = type(name, (base,), {"forward": forward, "__module__": "elsewhere"})
    made = layer(4, 4) if base is not nn.Module else layer()
    made.weight = nn.Parameter(torch.eye(4))
    return made  # type: ignore[no-any-return]


def test_a_layer_is_what_it_computes() -> None:
    assert [kind_of(layer) for layer in (nn.Linear(2, 2), Plain(2, 2), FalconLinear(2, 2))] == ["Linear"] * 3
    assert [kind_of(layer) for layer in (Conv1D(2, 2), Turned(2, 2))] == ["Conv1D"] * 2
    assert [kind_of(layer) for layer in (Gated(2, 2), nn.Embedding(2, 2))] == ["Gated", "Embedding"]


def test_a_layer_that_is_only_named_so_is_another() -> None:
    for layer, name in (
        (foreign("Linear"), "Linear"),
        (foreign("Linear", nn.Linear), "Linear"),
        (foreign("Conv1D"), "Conv1D"),
    ):
        assert kind_of(layer) == f"elsewhere.{name}"
        for put_on in (Stack, lambda module, deltas: MergedWeights(module).merge(deltas)):
            with pytest.raises(Invalid, match=f"is of a elsewhere.{name}, and the adapter was made for a {name}"):
                put_on(nn.Sequential(layer), adding({"0": random_delta(4, 4, 1, seed=0)}, name))


def test_the_layer_that_attention_reads_past_its_forward_is_no_linear() -> None:
    assert kind_of(nn.MultiheadAttention(4, 2).out_proj) == "NonDynamicallyQuantizableLinear"


def test_a_layer_with_settings_that_lora_ignores_says_so() -> None:
    kinds = {
        "Conv1d": nn.Conv1d(2, 2, 3, stride=2, padding="valid"),
        "Conv2d": nn.Conv2d(4, 4, 3, groups=2),
        "Conv3d": nn.Conv3d(2, 2, 1),
        "Conv1d(dilation)": nn.Conv1d(2, 2, 3, dilation=2),
        "Conv2d(dilation, padding_mode)": nn.Conv2d(2, 2, 3, padding=1, dilation=(1, 2), padding_mode="circular"),
        "Embedding": nn.Embedding(4, 2, padding_idx=0),
        "Embedding(max_norm)": nn.Embedding(4, 2, max_norm=1.0),
        "MultiheadAttention": nn.MultiheadAttention(4, 2),
        "ConvTranspose2d": nn.ConvTranspose2d(2, 2, 3),
        "EmbeddingBag": nn.EmbeddingBag(4, 2),
    }
    assert {kind: kind_of(layer) for kind, layer in kinds.items()} == dict(zip(kinds, kinds, strict=True))


def test_a_layer_whose_weight_is_computed_is_another_and_its_lora_is_refused_with_the_remedy(tmp_path: Path) -> None:
    norm, older = nn.utils.parametrizations.weight_norm, nn.utils.weight_norm
    kinds = {
        "Linear(parametrized)": norm(nn.Linear(2, 2)),
        "Conv1D(parametrized)": norm(Conv1D(2, 2)),
        "Embedding(parametrized)": norm(nn.Embedding(2, 2)),
        "Conv1d(dilation, parametrized)": norm(nn.Conv1d(2, 2, 3, dilation=2)),
        "MultiheadAttention(parametrized)": norm(nn.MultiheadAttention(4, 2), "in_proj_weight"),
    }
    assert {kind: kind_of(layer) for kind, layer in kinds.items()} == dict(zip(kinds, kinds, strict=True))
    with pytest.warns(FutureWarning, match="weight_norm"):
        assert kind_of(older(nn.Linear(2, 2))) == "Linear(parametrized)"
    base = peft_bases.Convolutions(1)
    norm(base.first)
    tuned = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["first"]))
    tuned.save_pretrained(tmp_path)
    with pytest.raises(
        Invalid, match=r"weight is computed from other tensors is not composed \(first\).*leave it out, or"
    ):
        chains.read(tmp_path, manifest_of_module(base))


def scaled_embeddings() -> Iterator[Any]:
    """Every class of transformers' models that multiplies an embedding's rows."""
    for file in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        for name in re.findall(r"class (\w+ScaledWordEmbedding)\(nn.Embedding\)", file.read_text()):
            module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
            yield getattr(module, name)


def test_an_embedding_of_transformers_is_one_only_where_it_does_no_more_than_scale_its_rows() -> None:
    scaled = {cls.__name__: cls(8, 4, 0, embed_scale=3.0) for cls in scaled_embeddings()}
    # One row of this embedding is a parameter of its own.
    assert kind_of(scaled.pop("T5Gemma2TextScaledWordEmbedding")) == "T5Gemma2TextScaledWordEmbedding"
    assert {"Gemma3TextScaledWordEmbedding", "BartScaledWordEmbedding"} < set(scaled)
    for layer in scaled.values():
        assert kind_of(layer) == "Embedding"
        torch.testing.assert_close(layer(torch.arange(8)), layer.weight * 3.0)
    offset = transformers.models.opt.modeling_opt.OPTLearnedPositionalEmbedding(8, 4)
    assert kind_of(offset) == "OPTLearnedPositionalEmbedding"


def test_experts_say_which_way_round_they_are_kept() -> None:
    def kind(model: nn.Module, layer: str) -> str:
        return kind_of(model.get_submodule(f"model.layers.0.{layer}"))

    assert kind(peft_bases.gpt_oss(), "mlp.experts") == "Experts(transposed)"
    assert kind(peft_bases.qwen3_moe(), "mlp.experts") == kind(peft_bases.mixtral(), "mlp.experts") == "Experts"
    assert kind(peft_bases.llama4(), "feed_forward.experts") == "Experts"
    assert kind(peft_bases.mixtral(), "mlp.gate") == "MixtralTopKRouter"
    assert kind_of(foreign("Experts")) == "elsewhere.Experts"


def test_falcons_own_linear_is_composed_as_peft_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.FalconConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, bias=True
    )
    model = transformers.FalconForCausalLM(config).eval()
    settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["query_key_value", "dense_4h_to_h"])
    tuned = peft.get_peft_model(copy.deepcopy(model), settings).eval()
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    tuned.save_pretrained(tmp_path)
    deltas = programs_of([(chains.read(tmp_path, manifest_of_module(model)), 1.0)])
    expected, stacked = chains.logits(tuned), copy.deepcopy(model)
    Stack(stacked, deltas)
    MergedWeights(model).merge(deltas)
    assert chains.relative(chains.logits(stacked), expected) < 1e-5
    assert chains.relative(chains.logits(model), expected) < 1e-5
