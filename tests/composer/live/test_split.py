"""Merge the ancestors, stack the rest: one composition, however its chain is divided."""

from pathlib import Path

import peft
import pytest
import torch
from torch import nn

from loratree_composer import Composer
from loratree_composer.base.sharing import tensors
from loratree_composer.live.stack import is_stacked
from loratree_registry.errors import Invalid
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Catalog


def composer(catalog: Catalog, model: nn.Module) -> Composer:
    return Composer(model, catalog.registry, home=catalog.home)


def reference(catalog: Catalog) -> torch.Tensor:
    return chains.logits(chains.merged_by_peft(catalog.tree.base, catalog.tree.chain))


def written(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Where each tensor is, and how often it was written to."""
    return {name: (tensor.data_ptr(), tensor._version) for name, tensor in tensors(model).items()}


@pytest.fixture
def bob(catalog: Catalog, tmp_path: Path) -> str:
    """The path of a second user beside alice."""
    directory = tiny.adapter(catalog.tree.base, tmp_path / "bob", seed=9, rank=3, targets=["q_proj", "down_proj"])
    path = f"{catalog.path(3)}/bob"
    catalog.publish(directory, path, parent=catalog.path(3))
    return path


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_chain_merged_to_any_level_and_stacked_below_it_is_the_chain(catalog: Catalog, depth: int) -> None:
    model = chains.load(catalog.tree.base)
    state, composed = chains.state_digest(model), composer(catalog, model)
    resolution = composed.use(catalog.leaf, merged=catalog.path(depth))
    assert resolution == composed.current == catalog.registry.resolve(catalog.leaf)
    assert chains.relative(chains.logits(model), reference(catalog)) < 1e-5
    assert is_stacked(model) == (depth < 4)
    assert composed.unreached == []
    composed.restore()
    assert chains.state_digest(model) == state
    assert not is_stacked(model)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_a_16_bit_model_stays_near_the_reference_wherever_the_chain_is_split(
    catalog: Catalog, dtype: torch.dtype, bound: float
) -> None:
    model, expected = chains.load(catalog.tree.base, dtype), reference(catalog)
    composed = composer(catalog, model)
    for depth in (1, 2, 3, 4):
        composed.use(catalog.leaf, merged=catalog.path(depth))
        assert chains.relative(chains.logits(model), expected) < bound


def test_the_next_user_under_the_same_ancestors_writes_no_weight(catalog: Catalog, bob: str) -> None:
    model, fresh = chains.load(catalog.tree.base), chains.load(catalog.tree.base)
    composed = composer(catalog, model)
    composed.use(catalog.leaf, merged=catalog.path(3))
    before, alice = written(model), chains.logits(model)
    composed.use(bob, merged=catalog.path(3))
    assert written(model) == before
    composer(catalog, fresh).use(bob)
    assert chains.relative(chains.logits(model), chains.logits(fresh)) < 1e-5
    composed.use(catalog.leaf, merged=catalog.path(3))
    assert written(model) == before
    assert torch.equal(chains.logits(model), alice)


def test_use_merge_and_splits_follow_each_other_in_any_order(catalog: Catalog, bob: str) -> None:
    model = chains.load(catalog.tree.base)
    state, composed, expected = chains.state_digest(model), composer(catalog, model), reference(catalog)
    composed.use(bob, merged=catalog.path(2))
    composed.merge(catalog.leaf)
    assert chains.relative(chains.logits(model), expected) < 1e-5
    composed.use(catalog.leaf, merged=catalog.path(1))
    assert chains.relative(chains.logits(model), expected) < 1e-5
    composed.use(catalog.leaf)
    assert chains.state_digest(model) == state
    assert chains.relative(chains.logits(model), expected) < 1e-5


def test_level_weights_count_on_both_sides_of_the_split(catalog: Catalog) -> None:
    weights = {catalog.path(1): 0.5, catalog.path(2): 0.0, catalog.path(4): -2.0}
    models = [chains.load(catalog.tree.base) for _ in range(3)]
    composer(catalog, models[0]).merge(catalog.leaf, weights=weights)
    expected = chains.logits(models[0])
    for model, depth in zip(models[1:], (2, 3), strict=True):
        composer(catalog, model).use(catalog.leaf, merged=catalog.path(depth), weights=weights)
        assert chains.relative(chains.logits(model), expected) < 1e-5


def test_what_is_not_in_the_chain_cannot_be_merged_down_to(catalog: Catalog, bob: str) -> None:
    model = chains.load(catalog.tree.base)
    composed = composer(catalog, model)
    composed.use(catalog.leaf)
    before = chains.logits(model)
    levels = "; ".join(catalog.path(depth) for depth in (1, 2, 3, 4))
    for path in (bob, "", "tiny", f"{catalog.path(1)}@1", "medicine"):
        with pytest.raises(Invalid, match=f"'{path}' is not in the chain of {catalog.leaf}.*its levels are {levels}"):
            composed.use(catalog.leaf, merged=path)
    with pytest.raises(Invalid, match="it is the base alone"):
        composed.use("tiny", merged="tiny")
    assert torch.equal(chains.logits(model), before)


def test_a_leaf_that_cannot_be_stacked_leaves_the_bare_base(catalog: Catalog, tmp_path: Path) -> None:
    huge = tiny.adapter(catalog.tree.base, tmp_path / "huge", std=1e5, targets=["down_proj"])
    path = f"{catalog.path(1)}/huge"
    catalog.publish(huge, path, parent=catalog.path(1))
    model = chains.load(catalog.tree.base, torch.float16)
    state, composed = chains.state_digest(model), composer(catalog, model)
    with pytest.raises(Invalid, match=r"down_proj\.weight would hold values that are not finite in torch\.float16"):
        composed.use(path, merged=catalog.path(1))
    assert chains.state_digest(model) == state
    assert composed.current is None
    assert not is_stacked(model)
    composer(catalog, model).use(catalog.leaf, merged=catalog.path(3))


def test_dora_in_the_stacked_part_takes_its_norm_on_the_merged_weights(catalog: Catalog, tmp_path: Path) -> None:
    ancestors = chains.merged_by_peft(catalog.tree.base, catalog.tree.chain[:2], torch.float32)
    ancestors.save_pretrained(tmp_path / "merged")  # type: ignore[operator]
    directory = tiny.adapter(tmp_path / "merged", tmp_path / "dora", rank=4, use_dora=True, change=_magnitudes)
    path = f"{catalog.path(2)}/dora"
    catalog.publish(directory, path, parent=catalog.path(2))
    exact = chains.merged_by_peft(catalog.tree.base, catalog.tree.chain[:2])
    tuned = peft.PeftModel.from_pretrained(exact, directory, autocast_adapter_dtype=False)
    expected = chains.logits(tuned.double().eval())
    model = chains.load(catalog.tree.base)
    composed = composer(catalog, model)
    for merged in (None, catalog.path(1), catalog.path(2), path):
        composed.use(path, merged=merged)
        assert chains.relative(chains.logits(model), expected) < 1e-5


def _magnitudes(tuned: nn.Module) -> None:
    for name, parameter in tuned.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data = 1 + parameter.data.abs()
