"""A flattened adapter, of every kind that PEFT writes, is one that PEFT loads as what it makes of the chain itself."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from loratree_composer.adapters.adapter import Adapter, programs_of
from loratree_composer.base.manifest import manifest_of_module
from loratree_composer.flatten.flatten import FlatAdapter, flattened
from loratree_composer.live.merged_weights import MergedWeights
from loratree_registry.core.chain import Limit
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.errors import Invalid
from tests import tiny
from tests.composer import chains
from tests.peft_adapters import ACCEPTED, Row
from tests.peft_bases import bert

FLAT = [row for row in ACCEPTED if "ordered" not in row.rules]  # alone, and most of them in a chain
ORDERED = [row for row in ACCEPTED if "ordered" in row.rules]
Chain = list[tuple[Adapter, float]]


def named(row: Row) -> str:
    return row.name


def read(directories: list[Path], manifest: BaseManifest) -> Chain:
    return [(chains.read(directory, manifest), 1.0) for directory in directories]


def written(flat: FlatAdapter, directory: Path) -> Path:
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(flat.config))
    save_file(flat.tensors, directory / "adapter_model.safetensors")
    return directory


def flatten(row: Row, base: nn.Module, directories: list[Path], out: Path) -> nn.Module:
    """PEFT's model of the flattened chain, whose every tensor it has loaded."""
    manifest = manifest_of_module(base)
    flat = flattened(read(directories, manifest), manifest, base_model="base")
    model = row.load(base, written(flat, out))
    assert isinstance(model, peft.PeftModel)
    return model


@torch.no_grad()
def run(row: Row, model: nn.Module) -> Tensor:
    return row.run(model)


@pytest.mark.parametrize("row", FLAT, ids=named)
def test_peft_loads_one_flattened_level_as_the_adapter_that_it_wrote(row: Row, tmp_path: Path) -> None:
    base = row.base()
    adapter = row.adapt(base, tmp_path / "adapter")
    expected = run(row, row.load(base, adapter))
    assert chains.relative(run(row, base), expected) > 1e-3
    assert chains.relative(run(row, flatten(row, base, [adapter], tmp_path / "flat")), expected) < 1e-5


@pytest.mark.parametrize("row", [row for row in FLAT if {"merge", "flatten"} <= {*row.forms}], ids=named)
def test_a_flattened_chain_of_two_is_what_merging_it_gives(row: Row, tmp_path: Path) -> None:
    base = row.base()
    adapters = [row.adapt(base, tmp_path / f"level{seed}", seed, r=2 * seed) for seed in (1, 2)]
    loaded = flatten(row, base, adapters, tmp_path / "flat")
    found = run(row, loaded)
    alone = run(row, row.load(base, adapters[1]))
    MergedWeights(base).merge(programs_of(read(adapters, manifest_of_module(base))))
    expected = run(row, base)
    assert chains.relative(found, expected) < 1e-5
    if "override" not in row.rules:
        assert chains.relative(alone, expected) > 1e-3


@pytest.mark.parametrize("row", ORDERED, ids=named)
def test_dora_is_refused_with_the_reason(row: Row, tmp_path: Path) -> None:
    base = row.base()
    adapter = row.adapt(base, tmp_path / "adapter")
    with pytest.raises(Invalid, match=r"DoRA rescales what is above it in .*: compose it by merging$"):
        flatten(row, base, [adapter], tmp_path / "flat")


def test_rows_that_are_replaced_under_a_delta_are_refused(tmp_path: Path) -> None:
    rows = {row.name: row for row in FLAT}
    base = rows["tied-head"].base()
    adapters = [rows[name].adapt(base, tmp_path / name) for name in ("tied-head", "tokens-head")]
    with pytest.raises(Invalid, match=r"rows of lm_head\.weight are replaced after deltas were added to it"):
        flatten(rows["tied-head"], base, adapters, tmp_path / "flat")


def test_one_trained_bias_of_two_tied_ones_is_written_for_each(tmp_path: Path) -> None:
    config = {"target_modules": ["query", "decoder"], "bias": "lora_only"}
    row = Row(name="", meaning="", make=bert, config=config)
    base = row.base()
    adapters = [row.adapt(base, tmp_path / f"level{seed}", seed, r=2 * seed) for seed in (1, 2)]
    found = run(row, flatten(row, base, adapters, tmp_path / "flat"))
    MergedWeights(base).merge(programs_of(read(adapters, manifest_of_module(base))))
    assert chains.relative(found, run(row, base)) < 1e-5


def test_the_groups_of_a_convolution_keep_their_ranks_apart(tmp_path: Path) -> None:
    row = next(row for row in FLAT if row.name == "conv-groups")
    base = row.base()
    adapters = [row.adapt(base, tmp_path / f"level{rank}", rank, r=rank) for rank in (2, 6)]
    tuned = row.load(base, adapters[0])
    assert isinstance(tuned, peft.PeftModel)
    tuned.load_adapter(adapters[1], "second", autocast_adapter_dtype=False)
    tuned.base_model.set_adapter(["default", "second"])
    expected = run(row, tuned.eval())
    assert chains.relative(run(row, row.load(base, adapters[0])), expected) > 1e-3
    assert chains.relative(run(row, flatten(row, base, adapters, tmp_path / "flat")), expected) < 1e-5


# Chains of unlike levels

ROWS = {row.name: row for row in ACCEPTED}
MANY: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "deltas on a module that a level above has replaced": (
        "saved-modules",
        [{}, {"target_modules": ["gate_proj", "lm_head", "k_proj"], "modules_to_save": None}],
    ),
    "a module that is replaced after deltas were added to it": (
        "saved-modules",
        [{"target_modules": [*tiny.LINEARS, "lm_head"], "modules_to_save": None}, {}],
    ),
    "lora_bias on biases that a level above has replaced, and on others": (
        "bias-lora-only",
        [{}, {"bias": "none", "lora_bias": True, "target_modules": ["c_attn", "c_fc"]}],
    ),
    "biases that are replaced after lora_bias was added to them": (
        "lora-bias",
        [{"target_modules": ["c_attn", "c_fc"]}, {"lora_bias": False, "bias": "lora_only"}],
    ),
    "all biases, then those of a level's own targets": (
        "bias-all",
        [{}, {"bias": "lora_only", "target_modules": ["c_fc"]}],
    ),
    "rows of the deepest level that has them": (
        "tokens",
        [{}, {"trainable_token_indices": [1, 7]}, {"trainable_token_indices": [90]}],
    ),
    "rows of a tied embedding, then of its head alone": (
        "tokens-tied",
        [{}, {"trainable_token_indices": {"lm_head": [5]}}],
    ),
    "an embedding with rows that is then replaced, and a delta on it": (
        "tokens",
        [
            {},
            {"trainable_token_indices": None, "modules_to_save": ["embed_tokens"]},
            {"trainable_token_indices": None, "target_modules": ["embed_tokens"]},
        ],
    ),
    "experts of which a level is on some alone": (
        "experts-qwen3",
        [{"target_parameters": ["gate_up_proj"]}, {}, {"target_parameters": ["layers.0.mlp.experts.down_proj"]}],
    ),
    "a rank above the layers' size": ("linear", [{"r": 70}, {"r": 2}]),
    "ranks that are no multiple of each other": ("attention", [{"r": 3}, {"r": 5, "target_modules": ["proj"]}]),
    "a classifier's head that two levels have trained": ("saved-head", [{}, {"target_modules": ["v_proj"]}]),
    "experts beside layers": ("experts-mixtral", [{}, {"target_modules": ["q_proj"], "target_parameters": None}]),
}


@pytest.mark.parametrize("case", MANY)
def test_a_flattened_chain_of_unlike_levels_is_what_merging_it_gives(case: str, tmp_path: Path) -> None:
    name, configs = MANY[case]
    row = ROWS[name]
    base = row.base()
    adapters = [row.adapt(base, tmp_path / f"level{at}", at + 1, **config) for at, config in enumerate(configs)]
    found = run(row, flatten(row, base, adapters, tmp_path / "flat"))
    without = run(row, base)
    MergedWeights(base).merge(programs_of(read(adapters, manifest_of_module(base))))
    expected = run(row, base)
    assert chains.relative(without, expected) > 1e-3
    assert chains.relative(found, expected) < 1e-5


REFUSED: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "rows behind deltas": (
        "tokens",
        [{"target_modules": ["embed_tokens"], "trainable_token_indices": None}, {}],
        r"rows of model\.embed_tokens\.weight are replaced after deltas were added to it",
    ),
    "deltas on a tensor with rows": (
        "tokens",
        [{}, {"target_modules": ["embed_tokens"], "trainable_token_indices": None}],
        r"no order for rows of model\.embed_tokens\.weight that are replaced and a delta that is added",
    ),
    "other values for the same rows of a tie": (
        "tokens-tied",
        [{}, {"trainable_token_indices": {"lm_head": [1, 3, 90]}}],
        r"PEFT ties these rows of model\.embed_tokens\.weight and lm_head\.weight",
    ),
    "rows of one side of a tie whose other side is replaced": (
        "tokens-tied",
        [{}, {"trainable_token_indices": None, "modules_to_save": ["lm_head"]}],
        r"as PEFT would change lm_head\.weight otherwise",
    ),
    "lora_bias beside layers without a bias": (
        "lora-bias",
        [{}, {"lora_bias": False, "target_modules": ["c_attn", "lm_head"]}],
        r"biases of all modules of an adapter or of none \(lora_bias\), and it can add to none of lm_head",
    ),
    "experts whose nesting no level tells": (
        "experts-qwen3",
        [{"target_parameters": ["gate_up_proj"]}, {"target_parameters": ["down_proj"]}],
        r"no level of the chain is on all of .*experts\.down_proj; .*experts\.gate_up_proj",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_one_adapter_cannot_hold_is_refused_with_the_remedy(case: str, tmp_path: Path) -> None:
    name, configs, reason = REFUSED[case]
    row = ROWS[name]
    base = row.base()
    adapters = [row.adapt(base, tmp_path / f"level{at}", at + 1, **config) for at, config in enumerate(configs)]
    with pytest.raises(Invalid, match=rf"{reason}.*: compose it by merging$"):
        flatten(row, base, adapters, tmp_path / "flat")
    MergedWeights(base).merge(programs_of(read(adapters, manifest_of_module(base))))  # which is the remedy


def test_a_limit_on_a_convolution_in_groups_is_refused(tmp_path: Path) -> None:
    row = ROWS["conv-groups"]
    base = row.base()
    manifest = manifest_of_module(base)
    chain = read([row.adapt(base, tmp_path / "adapter")], manifest)
    with pytest.raises(Invalid, match="second is a convolution in groups"):
        flattened(chain, manifest, base_model="base", limit=Limit(rank=2))
