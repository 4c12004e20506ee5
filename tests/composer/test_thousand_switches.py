"""A thousand random switches in bfloat16: the base is bit-identical, and PEFT's drift over as many is printed."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from loratree_composer.adapters.adapter import programs_of
from loratree_composer.base.manifest import read_base
from loratree_composer.live.merged_weights import MergedWeights
from tests import tiny
from tests.composer import chains

SWITCHES, USERS = 1000, 16


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[Path]]]:
    """A base and the chains of 16 users under 4 tasks."""
    root = tmp_path_factory.mktemp("switches")
    base = tiny.llama(root / "base")
    tasks = [tiny.adapter(base, root / f"task{n}", seed=n, rank=8, alpha=12, std=0.05) for n in range(4)]
    users = [tiny.adapter(base, root / f"user{n}", seed=100 + n, rank=2, alpha=3, std=0.05) for n in range(USERS)]
    return base, [[tasks[n % 4], user] for n, user in enumerate(users)]


def test_a_thousand_random_switches_leave_the_base_as_it_was(
    tree: tuple[Path, list[list[Path]]], record_property: Callable[[str, object], None]
) -> None:
    base, paths = tree
    manifest, model = read_base(base), chains.load(base, torch.bfloat16)
    users = [programs_of([(chains.read(path, manifest), 1.0) for path in chain]) for chain in paths]
    before, merges, chooser = chains.state_digest(model), MergedWeights(model), random.Random(0)
    digests: dict[int, set[str]] = {user: set() for user in range(USERS)}
    for turn in range(SWITCHES):
        user = chooser.randrange(USERS)
        merges.merge(users[user])
        if turn % 10 == 0:
            digests[user].add(chains.state_digest(model))
        if chooser.random() < 0.02:
            merges.restore()
            assert chains.state_digest(model) == before
    merges.restore()
    assert chains.state_digest(model) == before
    assert {len(found) for found in digests.values()} == {1}
    drift, changed = pefts_drift(base, paths)
    record_property(
        "measured",
        f"{SWITCHES} switches in bfloat16 among {USERS} users: loratree's base is bit-identical; PEFT's merge and "
        f"unmerge changed {changed:.0%} of its weights, by {drift:.1%} of their root mean square",
    )


def pefts_drift(base: Path, paths: list[list[Path]]) -> tuple[float, float]:
    """How far PEFT's weights are from the base after as many switches: RMS over RMS, and the part that changed."""
    model: Any = None
    for user, chain in enumerate(paths):
        for level, directory in enumerate(chain):
            name = f"user{user}level{level}"
            if model is None:
                model = peft.PeftModel.from_pretrained(chains.load(base, torch.bfloat16), directory, name)
            else:
                model.load_adapter(directory, name)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    before = {name: layer.get_base_layer().weight.detach().clone() for name, layer in layers.items()}
    chooser = random.Random(0)
    for _ in range(SWITCHES):
        user = chooser.randrange(USERS)
        for layer in layers.values():
            layer.merge(adapter_names=[f"user{user}level{level}" for level in range(2)])
            layer.unmerge()
    old = torch.cat([weight.flatten() for weight in before.values()]).float()
    new = torch.cat([layer.get_base_layer().weight.detach().flatten() for layer in layers.values()]).float()
    return float((new - old).norm() / old.norm()), float((new != old).float().mean())
