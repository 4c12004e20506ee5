"""Merged, stacked and flattened are one function: the one that PEFT computes by merging the whole chain in float64."""

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file

from loratree_composer.adapters.adapter import programs_of
from loratree_composer.arithmetic.program import Program
from loratree_composer.base.manifest import manifest_of_module
from loratree_composer.flatten.flatten import FlatAdapter, flattened
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.stack import Stack
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Tree


def programs(tree: Tree) -> dict[str, Program]:
    return programs_of([(chains.read(directory, tree.manifest), 1.0) for directory in tree.chain])


def flat(tree: Tree, directory: Path) -> Path:
    chain = [(chains.read(path, tree.manifest), 1.0) for path in tree.chain]
    return saved(flattened(chain, tree.manifest, base_model=str(tree.base)), directory)


def saved(adapter: FlatAdapter, directory: Path) -> Path:
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
    MergedWeights(model).merge(programs(tree))
    expected = chains.merged_by_peft(tree.base, tree.chain).state_dict()
    assert model.state_dict().keys() == expected.keys()
    worst = max(chains.relative(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert worst < 1e-6


def test_merged_logits_are_pefts(tree: Tree, reference: torch.Tensor) -> None:
    model = chains.load(tree.base)
    MergedWeights(model).merge(programs(tree))
    assert chains.relative(chains.logits(model), reference) < 1e-5


def test_stacked_logits_are_pefts(tree: Tree, reference: torch.Tensor) -> None:
    model = chains.load(tree.base)
    Stack(model, programs(tree))
    assert chains.relative(chains.logits(model), reference) < 1e-5


def test_peft_loads_the_flattened_chain_and_gives_the_same_logits(
    tree: Tree, reference: torch.Tensor, tmp_path: Path
) -> None:
    model = peft.PeftModel.from_pretrained(chains.load(tree.base), flat(tree, tmp_path / "flat"))
    assert chains.relative(chains.logits(model), reference) < 1e-5


def test_the_three_forms_agree_with_each_other(tree: Tree, tmp_path: Path) -> None:
    merged, stacked = chains.load(tree.base), chains.load(tree.base)
    MergedWeights(merged).merge(programs(tree))
    Stack(stacked, programs(tree))
    loaded = peft.PeftModel.from_pretrained(chains.load(tree.base), flat(tree, tmp_path / "flat"))
    expected = chains.logits(merged)
    assert chains.relative(chains.logits(stacked), expected) < 1e-5
    assert chains.relative(chains.logits(loaded), expected) < 1e-5


def test_the_flattened_chain_is_itself_an_adapter_that_can_be_published(tree: Tree, tmp_path: Path) -> None:
    again = chains.summed([(chains.read(flat(tree, tmp_path / "flat"), tree.manifest), 1.0)])
    for name, delta in chains.summed([(chains.read(path, tree.manifest), 1.0) for path in tree.chain]).items():
        assert chains.relative(again[name].delta(), delta.delta()) < 1e-6


def test_a_bfloat16_base_under_a_float32_chain_stays_near_the_reference(llama: Tree) -> None:
    exact = chains.logits(chains.merged_by_peft(llama.base, llama.chain))
    merged, stacked = (chains.load(llama.base, torch.bfloat16) for _ in range(2))
    MergedWeights(merged).merge(programs(llama))
    Stack(stacked, programs(llama))
    assert chains.relative(chains.logits(merged), exact) < 0.05
    assert chains.relative(chains.logits(stacked), exact) < 0.05


def test_a_flattened_16_bit_adapter_is_as_exact_as_a_float32_one(llama: Tree, tmp_path: Path) -> None:
    level = tiny.adapter(llama.base, tmp_path / "level", rank=4, alpha=6, dtype=torch.bfloat16)  # a scale of 1.5
    expected = chains.logits(chains.merged_by_peft(llama.base, [level]))
    adapter = flattened([(chains.read(level, llama.manifest), 1.0)], llama.manifest, base_model=str(llama.base))
    model = peft.PeftModel.from_pretrained(chains.load(llama.base), saved(adapter, tmp_path / "flat"))
    assert chains.relative(chains.logits(model), expected) < 1e-5


def test_a_classifiers_flattened_chain_needs_no_more_than_the_chain(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = tiny.llama_config(num_labels=2, pad_token_id=0)
    model = transformers.LlamaForSequenceClassification(settings).eval()
    manifest = manifest_of_module(model)
    tuned = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"]))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    tuned.save_pretrained(tmp_path / "level")
    adapter = flattened([(chains.read(tmp_path / "level", manifest), 1.0)], manifest, base_model="base")
    assert adapter.config["task_type"] is None
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), saved(adapter, tmp_path / "flat"))
    assert chains.relative(chains.logits(loaded.eval()), chains.logits(tuned.eval())) < 1e-5


def test_the_task_of_a_causal_chain_is_kept(tree: Tree, tmp_path: Path) -> None:
    config = json.loads((flat(tree, tmp_path / "flat") / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM"
