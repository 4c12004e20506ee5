"""Tied names from publish to compose: what a version records, and what following other ancestors would change."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from loratree_composer import Composer, compose
from loratree_composer.base.manifest import read_base
from loratree_registry.core.records import Version
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Conflict
from loratree_registry.workspace.base_locations import remember_base
from loratree_registry.workspace.publish import publish_directory
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Tree, open_catalog
from tests.peft_adapters import fill
from tests.peft_bases import quiet

HEAD: dict[str, Any] = {"target_modules": ["lm_head"]}
QUERY: dict[str, Any] = {"target_modules": ["q_proj"]}
ROWS = QUERY | {"trainable_token_indices": [5, 7]}


@dataclass
class Team:
    """Someone who composes to a folder, trains there with PEFT, and publishes by the lockfile."""

    registry: Registry
    base: Path
    folder: Path
    expected: dict[str, torch.Tensor] = field(default_factory=dict)

    def publish(self, path: str, on: str, config: dict[str, Any]) -> Version:
        """Trains an adapter on the composition of the ref `on`, and publishes it."""
        number = len(self.expected)
        parent, directory = self.folder / f"composed{number}", self.folder / f"adapter{number}"
        compose(self.registry, on, "merge", parent, home=self.folder / "home")
        torch.manual_seed(number)
        with quiet(), torch.no_grad():
            tuned = peft.get_peft_model(chains.load(parent), peft.LoraConfig(r=3, lora_alpha=5, **config))
            fill(tuned)
            tuned.save_pretrained(directory)
            expected = chains.logits(tuned.eval())
        version = publish_directory(self.registry, directory, path, home=self.folder / "home").published.version
        assert version.pin.found == "lockfile"
        self.expected[f"{version.path}@{version.number}"] = expected
        return version

    def check(self, ref: str) -> None:
        """Checks that a ref, merged, stacked and written, is PEFT's model."""
        composer = Composer(chains.load(self.base), self.registry, home=self.folder / "home")
        for put_on in (composer.merge, composer.use):
            put_on(ref)
            assert chains.relative(chains.logits(composer.model), self.expected[ref]) < 2e-5
        out = self.folder / f"out{len(list(self.folder.iterdir()))}"
        compose(self.registry, ref, "merge", out, home=self.folder / "home")
        assert chains.relative(chains.logits(chains.load(out)), self.expected[ref]) < 2e-5


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    base = tiny.llama(tmp_path / "base", tie_word_embeddings=True)
    manifest = read_base(base)
    catalog = open_catalog(tmp_path / "home", Tree(base, manifest, []))
    with closing(catalog.registry):
        catalog.registry.add_base("tied", manifest)
        remember_base(catalog.home, manifest.digest, base)
        yield Team(catalog.registry, base, tmp_path)


def ties(version: Version) -> tuple[bool, bool | None]:
    return version.summary.unties, version.summary.trained_tied


def test_each_level_means_what_it_meant_in_training(team: Team) -> None:
    one = team.publish("tied/medicine", "tied", HEAD | {"trainable_token_indices": [5, 7]})
    two = team.publish("tied/medicine/cardiology", "tied/medicine", HEAD | {"trainable_token_indices": [5, 9]})
    three = team.publish("tied/medicine/cardiology/diagnosis", "tied/medicine/cardiology", ROWS)
    four = team.publish("tied/medicine/cardiology/diagnosis/alice", "tied/medicine/cardiology/diagnosis", QUERY)
    assert [ties(version) for version in (one, two, three, four)] == [
        (True, True),
        (True, False),
        (True, False),
        (False, None),
    ]
    for ref in team.expected:
        team.check(ref)
    assert team.registry.version("tied/medicine").summary == one.summary


def test_rows_that_were_trained_tied_do_not_follow_ancestors_that_untie(team: Team) -> None:
    team.publish("tied/medicine", "tied", QUERY)
    team.publish("tied/medicine/cardiology", "tied/medicine", ROWS)
    team.publish("tied/medicine/cardiology/plain", "tied/medicine", QUERY)
    assert ties(team.registry.version("tied/medicine/cardiology")) == (False, True)
    team.publish("tied/medicine", "tied", HEAD)
    for ref in ("tied/medicine/cardiology", "tied/medicine/cardiology/plain"):
        team.check(f"{ref}@1")
    with pytest.raises(
        Conflict,
        match=r"cardiology cannot follow these ancestors: tied/medicine/cardiology@1 was trained where names that the "
        r"base ties were one tensor, and after tied/medicine@2 they are apart",
    ):
        team.registry.resolve("tied/medicine/cardiology", follow="latest")
    # It stands in the followed chain of the leaf too, where the leaf itself would mean the same.
    with pytest.raises(Conflict, match=r"tied/medicine/cardiology@1 was trained where"):
        team.registry.resolve("tied/medicine/cardiology/plain", follow="latest")


def test_rows_that_were_trained_apart_do_not_follow_ancestors_that_keep_the_tie(team: Team) -> None:
    team.publish("tied/medicine", "tied", HEAD)
    team.publish("tied/medicine/cardiology", "tied/medicine", ROWS)
    team.publish("tied/medicine", "tied", QUERY)
    with pytest.raises(Conflict, match=r"were apart, and they are one tensor, so it would be another function"):
        team.registry.resolve("tied/medicine/cardiology", follow="latest")
    assert team.registry.resolve("tied/medicine/cardiology").stale


def test_what_means_the_same_over_both_follows_both(team: Team) -> None:
    team.publish("tied/medicine", "tied", QUERY)
    leaf = team.publish("tied/medicine/cardiology", "tied/medicine", HEAD)
    team.publish("tied/medicine", "tied", HEAD)
    assert ties(leaf) == (True, None)
    followed = team.registry.resolve("tied/medicine/cardiology", follow="latest")
    assert [link.version for link in followed.chain] == [2, 1]


def test_a_level_that_a_weight_leaves_out_still_is_what_the_next_was_trained_on(team: Team) -> None:
    team.publish("tied/medicine", "tied", HEAD)
    team.publish("tied/medicine/cardiology", "tied/medicine", ROWS)
    composer = Composer(chains.load(team.base), team.registry, home=team.folder / "home")
    composer.merge("tied/medicine/cardiology", weights={"tied/medicine": 0})
    head = composer.model.get_submodule("lm_head").weight
    embedding = composer.model.get_submodule("model.embed_tokens").weight
    assert isinstance(head, torch.Tensor)
    assert isinstance(embedding, torch.Tensor)
    differ = (head != embedding).any(1).nonzero().flatten().tolist()
    assert differ == [5, 7]  # the rows are the embedding's alone, as in training
