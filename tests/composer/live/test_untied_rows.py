"""Token rows that are trained over ancestors which have taken embedding and head apart: the embedding's alone."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from loratree_composer.adapters.adapter import Adapter, programs_of
from loratree_composer.base.manifest import manifest_of_module
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.stack import Stack
from tests.composer import chains
from tests.peft_adapters import ACCEPTED, Row
from tests.peft_bases import logits

ROWS = {row.name: row for row in ACCEPTED}
ABOVE = ["tied-embedding", "tied-head", "saved-tied-embedding", "tokens-head", "tied-both"]
TOGETHER = ["saved-tied-both", "tokens-tied"]


def untied(model: nn.Module) -> nn.Module:
    """The model as transformers loads what was composed to files: the head apart from the embedding."""
    head = model.get_submodule("lm_head")
    head.weight = nn.Parameter(head.weight.detach().clone())
    model.config.tie_word_embeddings = False  # type: ignore[union-attr, assignment]
    return model


def chain(row: Row, base: nn.Module, folder: Path, *, apart: bool) -> tuple[list[tuple[Adapter, float]], torch.Tensor]:
    """The row's adapter, token rows that PEFT trained over its composition, and what PEFT's model then gives."""
    manifest = manifest_of_module(base)
    upper = chains.read(row.adapt(base, folder / "upper"), manifest)
    parent = copy.deepcopy(base)
    parent = untied(parent) if apart else parent
    MergedWeights(parent).merge(programs_of([(upper, 1.0)]))
    if not apart:
        parent = copy.deepcopy(base)
        state = {name: tensor.clone() for name, tensor in _merged_state(base, upper).items()}
        parent.load_state_dict(state)
    lower = ROWS["tokens"].adapt(parent, folder / "lower", seed=5)
    expected = logits(ROWS["tokens"].load(parent, lower))
    return [(upper, 1.0), (chains.read(lower, manifest, untied=apart), 1.0)], expected


def _merged_state(base: nn.Module, adapter: Adapter) -> dict[str, torch.Tensor]:
    model = copy.deepcopy(base)
    MergedWeights(model).merge(programs_of([(adapter, 1.0)]))
    return dict(model.state_dict())


@pytest.mark.parametrize("name", [*ABOVE, *TOGETHER])
def test_rows_go_where_they_went_in_training(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    base = row.base(dtype=torch.float64)
    with torch.no_grad():
        levels, expected = chain(row, base, tmp_path, apart=name in ABOVE)
        merged, stacked, split = (copy.deepcopy(base) for _ in range(3))
        MergedWeights(merged).merge(programs_of(levels))
        Stack(stacked, programs_of(levels))
        MergedWeights(split).merge(programs_of(levels[:1]))
        Stack(split, programs_of(levels[1:]))
        for model in (merged, stacked, split):
            assert chains.relative(logits(model), expected) < 1e-5
