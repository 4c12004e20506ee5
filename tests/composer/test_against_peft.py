"""Merged, stacked and flattened are one function: the one that PEFT computes by merging the whole chain in float64."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file

from loratree_composer.adapter import summed
from loratree_composer.flatten import flattened, widest
from loratree_composer.lowrank import LowRank
from loratree_composer.merged_weights import MergedWeights
from loratree_composer.stack import Stack
from tests.composer import chains
from tests.composer.conftest import Tree


def deltas(tree: Tree) -> dict[str, LowRank]:
    return summed((chains.read(directory, tree.manifest), 1.0) for directory in tree.chain)


def flat(tree: Tree, directory: Path) -> Path:
    dtypes = {dtype for path in tree.chain for dtype in chains.read(path, tree.manifest).dtypes}
    adapter = flattened(deltas(tree), tree.manifest, widest(dtypes), base_model=str(tree.base))
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(adapter.config))
    save_file(adapter.tensors, directory / "adapter_model.safetensors")
    return directory


@pytest.fixture
def reference(tree: Tree) -> torch.Tensor:
    """PEFT's logits, in float64."""
    return chains.logits(chains.merged_by_peft(tree.base, tree.chain))


def test_the_chain_changes_the_model_by_far_more_than_the_tolerance(tree: Tree, reference: torch.Tensor) -> None:
    assert chains.relative(chains.logits(chains.load(tree.base)), reference) > 0.05


def test_merged_weights_are_what_peft_merges(tree: Tree) -> None:
    model = chains.load(tree.base)
    MergedWeights(model).merge(deltas(tree))
    expected = chains.merged_by_peft(tree.base, tree.chain).state_dict()
    assert model.state_dict().keys() == expected.keys()
    worst = max(chains.relative(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert worst < 1e-6


def test_merged_logits_are_pefts(tree: Tree, reference: torch.Tensor) -> None:
    model = chains.load(tree.base)
    MergedWeights(model).merge(deltas(tree))
    assert chains.relative(chains.logits(model), reference) < 1e-5


def test_stacked_logits_are_pefts(tree: Tree, reference: torch.Tensor) -> None:
    model = chains.load(tree.base)
    Stack(model, deltas(tree))
    assert chains.relative(chains.logits(model), reference) < 1e-5


def test_peft_loads_the_flattened_chain_and_gives_the_same_logits(
    tree: Tree, reference: torch.Tensor, tmp_path: Path
) -> None:
    model = peft.PeftModel.from_pretrained(chains.load(tree.base), flat(tree, tmp_path / "flat"))
    assert chains.relative(chains.logits(model), reference) < 1e-5


def test_the_three_forms_agree_with_each_other(tree: Tree, tmp_path: Path) -> None:
    merged, stacked = chains.load(tree.base), chains.load(tree.base)
    MergedWeights(merged).merge(deltas(tree))
    Stack(stacked, deltas(tree))
    loaded = peft.PeftModel.from_pretrained(chains.load(tree.base), flat(tree, tmp_path / "flat"))
    expected = chains.logits(merged)
    assert chains.relative(chains.logits(stacked), expected) < 1e-5
    assert chains.relative(chains.logits(loaded), expected) < 1e-5


def test_the_flattened_chain_is_itself_an_adapter_that_can_be_published(tree: Tree, tmp_path: Path) -> None:
    again = summed([(chains.read(flat(tree, tmp_path / "flat"), tree.manifest), 1.0)])
    for name, delta in deltas(tree).items():
        assert chains.relative(again[name].delta(), delta.delta()) < 1e-6


def test_a_bfloat16_base_under_a_float32_chain_stays_near_the_reference(llama: Tree) -> None:
    exact = chains.logits(chains.merged_by_peft(llama.base, llama.chain))
    merged, stacked = (chains.load(llama.base, torch.bfloat16) for _ in range(2))
    MergedWeights(merged).merge(deltas(llama))
    Stack(stacked, deltas(llama))
    assert chains.relative(chains.logits(merged), exact) < 0.05
    assert chains.relative(chains.logits(stacked), exact) < 0.05
