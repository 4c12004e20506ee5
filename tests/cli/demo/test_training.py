from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loratree_cli.demo.evaluation import losses, padded
from loratree_cli.demo.recipe import Recipe
from loratree_cli.demo.tokenizer import END_ID
from loratree_cli.demo.training import batches, load_model, new_model, pack, share, train_adapter, train_base
from tests.cli.demo.small import RECIPE

SHORT = replace(RECIPE, base_steps=3, adapter_steps=3, batch=2)


def test_documents_are_packed_one_after_the_other_with_an_end_token_before_each() -> None:
    assert pack(["ab", "c", "defg"], 4).tolist() == [[END_ID, 97, 98, END_ID], [99, END_ID, 100, 101]]


@pytest.mark.parametrize("depth", range(5))
def test_a_lesson_fills_every_step_and_no_byte_is_read_twice(depth: int) -> None:
    recipe = Recipe()
    rows = batches(recipe, depth)
    assert rows.shape == (recipe.steps(depth), recipe.batch, recipe.length)
    assert len({tuple(row) for row in rows.flatten(0, 1).tolist()}) == recipe.steps(depth) * recipe.batch


def test_the_rate_rises_over_the_first_tenth_and_falls_to_nothing() -> None:
    shares = [share(step, 100) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9]
    assert shares[9:] == sorted(shares[9:], reverse=True)
    assert shares[100] == pytest.approx(0)


def test_the_same_seed_trains_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        train_base(replace(SHORT, seed=seed), tmp_path / name, lambda _: None)
    one, same, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "same", "other"))
    assert one == same != other


def test_training_an_adapter_leaves_its_parent_as_it_was_and_names_it(tmp_path: Path) -> None:
    import json

    train_base(SHORT, tmp_path / "base", lambda _: None)
    before = (tmp_path / "base" / "model.safetensors").read_bytes()
    train_adapter(SHORT, 1, 4, tmp_path / "base", tmp_path / "adapter", lambda _: None)
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == before
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (4, 8, 7)


def test_the_demos_base_has_at_most_a_million_parameters() -> None:
    assert sum(parameter.numel() for parameter in new_model(Recipe()).parameters()) <= 1_000_000


def test_what_is_read_and_what_comes_next_are_aligned_and_filled_up() -> None:
    ids, targets = padded(["ab", "c"])
    assert ids.tolist() == [[END_ID, 97, 98], [END_ID, 99, END_ID]]
    assert targets.tolist() == [[97, 98, END_ID], [99, END_ID, -100]]


def test_a_documents_loss_is_its_own_whatever_it_is_batched_with(tmp_path: Path) -> None:
    train_base(SHORT, tmp_path / "base", lambda _: None)
    model = load_model(tmp_path / "base")
    documents = ["short", "a longer document of many words", "x" * 100]
    alone = [losses(model, [document])[0] for document in documents]
    assert losses(model, documents) == pytest.approx(alone, abs=1e-5)


def test_a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary(tmp_path: Path) -> None:
    model = new_model(RECIPE)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert losses(model, ["any text"]) == pytest.approx([5.549076])  # ln 257
