"""Every kind of adapter that PEFT writes, stacked: PEFT's own forward, and no trace of it afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loratree_composer.adapters.adapter import Adapter, programs_of
from loratree_composer.base.manifest import manifest_of_module
from loratree_composer.base.sharing import tensors, ties
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.stack import Stack, is_stacked
from loratree_composer.live.untied_tensors import put
from loratree_registry.errors import Invalid
from tests.composer import chains
from tests.peft_adapters import ACCEPTED, Row, quiet

Chain = list[tuple[Adapter, float]]
ROWS = {row.name: row for row in ACCEPTED}


def named(rows: tuple[Row, ...]) -> list[Any]:
    """The rows as parameters, each by its name."""
    return [pytest.param(row, id=row.name) for row in rows]


@torch.no_grad()
def run(row: Row, model: nn.Module) -> Tensor:
    return row.run(model)


def exact(row: Row) -> nn.Module:
    """The row's base in float64, of the same values."""
    return row.base(dtype=torch.float64)


@pytest.mark.parametrize("row", named(ACCEPTED))
def test_an_adapter_stacked_or_merged_is_pefts_forward_and_leaves_no_trace(row: Row, tmp_path: Path) -> None:
    model = row.base()
    directory = row.adapt(model, tmp_path)
    expected = run(row, row.load(exact(row), directory))
    before, state, plain = tensors(model), chains.state_digest(model), run(row, model)
    programs = programs_of([(chains.read(directory, manifest_of_module(model)), 1.0)])

    stack = Stack(model, programs)
    assert chains.relative(run(row, model), expected) < 1e-5
    assert chains.relative(plain, expected) > 0.05
    stack.remove()
    assert all(tensor is before[name] for name, tensor in tensors(model).items())
    assert not is_stacked(model)

    weights = MergedWeights(model)
    if row.merges:
        weights.merge(programs)
        assert chains.relative(run(row, model), expected) < 1e-5
        weights.restore()
    else:
        with pytest.raises(Invalid, match=r"is of a convolution in 2 groups.*stack"):
            weights.merge(programs)
    assert all(tensor is before[name] for name, tensor in tensors(model).items())
    assert chains.state_digest(model) == state
    assert torch.equal(run(row, model), plain)


# Chains: each level is trained on the merged levels above it


def sequence(names: tuple[str, ...], root: Path) -> tuple[nn.Module, Chain, list[nn.Module]]:
    """A base, a chain of adapters over it, and PEFT's own model down to each level, in float64.

    Each adapter is made over the merged ancestors, and loaded and merged by PEFT into them.
    """
    base, reference = ROWS[names[0]].base(), exact(ROWS[names[0]])
    if any("embedding" in name for name in names):
        untie(reference)
    manifest, chain, references = manifest_of_module(base), [], []
    for depth, name in enumerate(names):
        directory = ROWS[name].adapt(reference.float(), root / str(depth), seed=depth)
        with quiet():
            tuned: Any = ROWS[name].load(reference.double(), directory)
            reference = tuned.merge_and_unload().eval()
        chain.append((chains.read(directory, manifest), 1.0))
        references.append(reference)
    return base, chain, references


def untie(model: nn.Module) -> None:
    """Gives each name a tensor of its own: PEFT's merge of an embedding writes to the head that is tied to it too."""
    for name, first in ties(model).items():
        if name != first:
            put(model, name, nn.Parameter(model.get_parameter(first).detach().clone()))


CHAINS = [
    ("linear", "linear", "linear"),
    ("linear", "dora"),
    ("dora", "linear"),
    ("dora", "dora"),
    ("linear", "dora", "linear", "dora"),
    ("dora-biased", "mixed-dora", "dora-biased"),
    ("conv1d-hf", "dora-conv1d-hf", "lora-bias", "dora-conv1d-hf"),
    ("embedding", "dora-embedding", "embedding"),
    ("dora-embedding-scaled", "embedding-scaled", "dora-embedding-scaled"),
    ("embedding", "tokens", "embedding", "dora-embedding"),
    ("lm-head", "saved-modules", "lm-head", "linear"),
    ("bias-all", "lora-bias", "mixed", "lora-bias"),
    ("conv1d", "dora-conv1d", "conv1d"),
    ("dora-conv2d", "conv2d", "dora-conv2d"),
    ("conv3d", "dora-conv3d"),
    ("attention", "attention"),
    ("experts-gpt-oss", "experts-gpt-oss"),
    ("experts-qwen3", "experts-ranks"),
]


@pytest.mark.parametrize("names", CHAINS, ids="+".join)
def test_a_chain_stacked_merged_or_split_anywhere_is_pefts_level_by_level(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    model, chain, references = sequence(names, tmp_path)
    row, before, state = ROWS[names[-1]], tensors(model), chains.state_digest(model)
    expected = run(row, references[-1])
    weights = MergedWeights(model)
    for depth in range(len(chain) + 1):
        weights.merge(programs_of(chain[:depth]))
        if depth:
            assert chains.relative(run(row, model), run(row, references[depth - 1])) < 1e-5
        stack = Stack(model, programs_of(chain[depth:]))
        assert chains.relative(run(row, model), expected) < 1e-5
        stack.remove()
    weights.restore()
    assert all(tensor is before[name] for name, tensor in tensors(model).items())
    assert chains.state_digest(model) == state


def test_grouped_convolutions_of_a_chain_are_one_pair_that_both_levels_make(tmp_path: Path) -> None:
    row = ROWS["conv-groups"]
    model, levels = row.base(), [row.adapt(row.base(), tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    with quiet():
        tuned: Any = row.load(exact(row), levels[0])
        tuned.load_adapter(levels[1], "deeper", autocast_adapter_dtype=False)
        tuned.double().base_model.set_adapter(["default", "deeper"])
    Stack(model, programs_of([(chains.read(level, manifest_of_module(model)), 1.0) for level in levels]))
    assert chains.relative(run(row, model), run(row, tuned)) < 1e-5


@pytest.mark.parametrize("name", ["linear", "conv1d-hf", "embedding-scaled", "conv2d", "conv-groups", "lora-bias"])
def test_level_weights_multiply_what_each_level_adds(name: str, tmp_path: Path) -> None:
    row, given = ROWS[name], {"level0": 0.5, "level1": -1.25, "level2": 0.0}
    model = row.base()
    levels = {level: row.adapt(model, tmp_path / level, seed=seed) for seed, level in enumerate(given)}
    chain = [(chains.read(levels[level], manifest_of_module(model)), weight) for level, weight in given.items()]
    Stack(model, programs_of(chain))
    assert chains.relative(run(row, model), run(row, weighted(row, levels, given))) < 1e-5


def weighted(row: Row, levels: dict[str, Path], weights: dict[str, float]) -> nn.Module:
    """PEFT's own model of several adapters, the factor and the bias of each B multiplied by its weight."""
    tuned: Any = None
    with quiet():
        for level, directory in levels.items():
            if tuned is None:
                tuned = row.load(exact(row), directory)
                tuned.load_adapter(directory, level, autocast_adapter_dtype=False)
            else:
                tuned.load_adapter(directory, level, autocast_adapter_dtype=False)
        tuned.double().base_model.set_adapter(list(levels))
    for name, parameter in tuned.named_parameters():
        for level, weight in weights.items():
            if f"lora_B.{level}." in name or f"lora_embedding_B.{level}" in name:
                parameter.data *= weight
    return tuned


@pytest.mark.parametrize(
    "names", [("linear", "dora", "linear"), ("embedding", "tokens", "dora-embedding")], ids="+".join
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_chain_is_within_its_rounding_wherever_it_is_split(
    names: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    """Within 16 times the error that the last level's own model, rounded to the dtype, makes."""
    model, chain, references = sequence(names, tmp_path)
    row, model = ROWS[names[-1]], model.to(dtype)
    expected = run(row, references[-1])
    rounded = chains.relative(run(row, references[-1].to(dtype)), expected)
    weights = MergedWeights(model)
    for depth in range(len(chain) + 1):
        weights.merge(programs_of(chain[:depth]))
        stack = Stack(model, programs_of(chain[depth:]))
        assert chains.relative(run(row, model), expected) < 16 * rounded
        stack.remove()
