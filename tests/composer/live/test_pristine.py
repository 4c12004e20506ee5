"""Where a merge gets the untouched weights from, and what becomes of those that others write."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.pristine import PristinePlace
from loratree_registry.errors import Invalid
from tests.composer import chains
from tests.composer.conftest import Catalog
from tests.composer.reference_sums import adding, random_delta


class InMemory:
    """The tensors of a module as they were, and how often each was asked for."""

    def __init__(self, module: nn.Module) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.asked: list[str] = []

    def read(self, name: str) -> Tensor:
        self.asked.append(name)
        return self.tensors[name]


DELTA = {"0": random_delta(4, 3, 2, seed=0)}


@pytest.mark.parametrize("place", ["host", "device", "files"])
def test_every_place_gives_the_base_back_bit_for_bit(place: PristinePlace) -> None:
    model = nn.Sequential(nn.Linear(3, 4)).bfloat16()
    before, source = chains.state_digest(model), InMemory(model)
    merges = MergedWeights(model, pristine=place, source=source)
    for seed in range(5):
        merges.merge(adding({"0": random_delta(4, 3, 2, seed=seed)}))
        assert chains.state_digest(model) != before
        merges.restore()
        assert chains.state_digest(model) == before
    assert source.asked == (["0.weight"] * 10 if place == "files" else [])


def test_files_are_cast_to_the_dtype_that_the_model_is_held_in() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    source = InMemory(model)
    model.bfloat16()
    before = chains.state_digest(model)
    merges = MergedWeights(model, pristine="files", source=source)
    merges.merge(adding(DELTA))
    merges.restore()
    assert chains.state_digest(model) == before


def test_weights_that_were_written_between_two_merges_are_the_new_pristine_ones() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    merges = MergedWeights(model)
    merges.merge(adding(DELTA))
    merges.restore()
    with torch.no_grad():
        model[0].weight.fill_(0.25)
    merges.merge(adding(DELTA))
    torch.testing.assert_close(model[0].weight.detach(), 0.25 + DELTA["0"].delta())
    merges.restore()
    assert (model[0].weight == 0.25).all()


def test_weights_that_were_cast_between_two_merges_are_the_new_pristine_ones() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    merges = MergedWeights(model)
    merges.merge(adding(DELTA))
    merges.restore()
    model.half()
    before = chains.state_digest(model)
    merges.merge(adding(DELTA))
    merges.restore()
    assert model[0].weight.dtype == torch.float16
    assert chains.state_digest(model) == before


def test_a_place_that_there_is_not_is_refused() -> None:
    with pytest.raises(Invalid, match="host, device, files, got 'disk'"):
        MergedWeights(nn.Sequential(), pristine="disk")  # type: ignore[arg-type]
    with pytest.raises(Invalid, match="only where the base's checkpoint is known"):
        MergedWeights(nn.Sequential(), pristine="files")


def test_a_composer_can_keep_the_pristine_weights_in_the_bases_own_files(catalog: Catalog) -> None:
    from loratree_composer import Composer

    for dtype in (torch.float32, torch.bfloat16):
        model, kept = (chains.load(catalog.tree.base, dtype) for _ in range(2))
        before = chains.state_digest(model)
        composer = Composer(model, catalog.registry, home=catalog.home, pristine="files")
        Composer(kept, catalog.registry, home=catalog.home).merge(catalog.leaf)
        composer.merge(catalog.path(2))
        composer.merge(catalog.leaf)
        assert chains.state_digest(model) == chains.state_digest(kept)
        composer.restore()
        assert chains.state_digest(model) == before


def test_files_that_changed_are_told_and_nothing_wrong_is_written(catalog: Catalog, tmp_path: Path) -> None:
    from loratree_composer import Composer
    from loratree_registry.workspace.base_locations import base_directory, remember_base

    folder = tmp_path / "copy"
    folder.mkdir()
    for path in catalog.tree.base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    remember_base(catalog.home, catalog.tree.manifest.digest, folder)
    assert base_directory(catalog.home, catalog.tree.manifest.digest) == folder
    model = chains.load(catalog.tree.base)
    before = chains.state_digest(model)
    composer = Composer(model, catalog.registry, home=catalog.home, pristine="files")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    for position in range(len(content) // 2, len(content)):
        content[position] ^= 1
    weights.write_bytes(content)
    with pytest.raises(Invalid, match="no longer holds the base"):
        composer.merge(catalog.leaf)
    assert chains.state_digest(model) == before


def test_a_kept_sum_of_the_ancestors_is_taken_without_reading_the_files_again() -> None:
    from loratree_composer.arithmetic.edits import Add
    from loratree_composer.arithmetic.program import ChainStep, programs

    model = nn.Sequential(nn.Linear(3, 4))
    source = InMemory(model)
    merges = MergedWeights(model, pristine="files", source=source)
    above = ChainStep("above", 1.0, {"0.weight": (Add(DELTA["0"]),)})
    for user in range(6):
        leaf = ChainStep(f"user{user}", 1.0, {"0.weight": (Add(random_delta(4, 3, 1, seed=user)),)})
        merges.merge(programs([above, leaf]))
    assert source.asked == ["0.weight"] * 2
