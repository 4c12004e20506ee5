import copy
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.nn.functional import linear
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from loratree_composer.adapter import composed
from loratree_composer.base import manifest_of_module
from loratree_composer.layer_kind import kind_of
from loratree_composer.merged_weights import MergedWeights
from loratree_composer.stack import Stack
from loratree_registry.errors import Invalid
from tests.composer import chains
from tests.composer.arithmetic import adding, random_delta


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
    deltas = composed([(chains.read(tmp_path, manifest_of_module(model)), 1.0)])
    expected, stacked = chains.logits(tuned), copy.deepcopy(model)
    Stack(stacked, deltas)
    MergedWeights(model).merge(deltas)
    assert chains.relative(chains.logits(stacked), expected) < 1e-5
    assert chains.relative(chains.logits(model), expected) < 1e-5
