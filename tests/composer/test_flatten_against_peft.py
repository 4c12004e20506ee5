"""A flattened adapter, of every kind that PEFT writes, is one that PEFT loads as what it makes of the chain itself."""

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from loratree_composer.adapter import Adapter, composed
from loratree_composer.base import manifest_of_module
from loratree_composer.flatten import FlatAdapter, flattened
from loratree_composer.merged_weights import MergedWeights
from loratree_registry.errors import Invalid
from loratree_registry.manifest import BaseManifest
from tests.composer import chains
from tests.peft_adapters import ACCEPTED, Row

FLAT = [row for row in ACCEPTED if "ordered" not in row.rules]
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


@pytest.mark.parametrize("row", [row for row in FLAT if row.merges and row.name != "tokens-and-head"], ids=named)
def test_a_flattened_chain_of_two_is_what_merging_it_gives(row: Row, tmp_path: Path) -> None:
    base = row.base()
    adapters = [row.adapt(base, tmp_path / f"level{seed}", seed, r=2 * seed) for seed in (1, 2)]
    loaded = flatten(row, base, adapters, tmp_path / "flat")
    found = run(row, loaded)
    alone = run(row, row.load(base, adapters[1]))
    MergedWeights(base).merge(composed(read(adapters, manifest_of_module(base))))
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
    row = next(row for row in FLAT if row.name == "tokens-and-head")
    base = row.base()
    adapters = [row.adapt(base, tmp_path / f"level{seed}", seed) for seed in (1, 2)]
    with pytest.raises(Invalid, match=r"rows of lm_head\.weight are replaced after deltas were added to it"):
        flatten(row, base, adapters, tmp_path / "flat")


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
