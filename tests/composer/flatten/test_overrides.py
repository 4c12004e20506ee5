"""Whole values in a flattened adapter: the layers that PEFT saves them with."""

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

from loratree_composer.adapters.adapter import Adapter, Value
from loratree_composer.base.manifest import manifest_of_module
from loratree_composer.flatten.flatten import flattened
from loratree_registry.errors import Invalid
from tests.composer import chains
from tests.composer.test_flatten_against_peft import flatten
from tests.peft_adapters import Row
from tests.peft_bases import image


class Listed(nn.Module):
    """A layer whose weights are in a list, in the layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.ones(4, 1), torch.ones(4, 1)])

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 4, length]"""
        return x * self.weights[0] + self.weights[1]


class Inside(nn.Module):
    """A convolution with weight norm, and a layer of listed weights behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(4, 4, 1)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 3, padding=1))
        self.listed = Listed()

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, 4, length]"""
        y = self.listed(self.normed(self.first(x)))
        assert isinstance(y, Tensor)
        return y


@torch.no_grad()
def test_what_a_layer_keeps_inside_is_saved_with_that_layer(tmp_path: Path) -> None:
    config = {"target_modules": ["first"], "modules_to_save": ["normed", "listed"]}
    row = Row(name="inside", meaning="", make=Inside, config=config, run=image(1))
    base = row.base()
    adapter = row.adapt(base, tmp_path / "adapter")
    flat = flatten(row, base, [adapter], tmp_path / "flat")
    assert isinstance(flat, peft.PeftModel)
    assert flat.peft_config["default"].modules_to_save == ["listed", "normed"]
    expected = row.run(row.load(base, adapter))
    assert chains.relative(row.run(flat), expected) < 1e-5
    assert chains.relative(row.run(base), expected) > 1e-3


def test_what_belongs_to_no_layer_is_refused() -> None:
    model = nn.Module()
    model.weights = nn.ParameterList([torch.ones(4)])
    manifest = manifest_of_module(model)
    chain = [(Adapter({"weights.0": (Value(torch.zeros(4)),)}), 1.0)]
    with pytest.raises(
        Invalid, match=r"PEFT copies layers, and weights\.0 is of the model itself: compose it by merging"
    ):
        flattened(chain, manifest, base_model="base")
