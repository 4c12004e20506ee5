"""Bases and chains that the composer's tests share; each is made once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from loratree_composer.base import read_base
from loratree_registry.manifest import BaseManifest
from tests import tiny


@dataclass(frozen=True)
class Tree:
    """A base's directory, its manifest, and a chain of PEFT directories from root to leaf."""

    base: Path
    manifest: BaseManifest
    chain: list[Path]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Linear layers: mixed ranks, rsLoRA, rank and alpha patterns, and a leaf on two modules of one layer alone."""
    root = tmp_path_factory.mktemp("llama")
    base = tiny.llama(root / "base")
    chain = [
        tiny.adapter(base, root / "domain", seed=1, rank=8, alpha=12),
        tiny.adapter(base, root / "subdomain", seed=2, rank=6, alpha=9, use_rslora=True, targets=["q_proj", "v_proj"]),
        tiny.adapter(
            base,
            root / "task",
            seed=3,
            rank=4,
            alpha=4,
            rank_pattern={"down_proj": 7, "layers.1.self_attn.k_proj": 2},
            alpha_pattern={"down_proj": 3},
        ),
        tiny.adapter(base, root / "user", seed=4, rank=2, alpha=7, targets=r".*layers\.1\.(self_attn\.q|mlp\.up)_proj"),
    ]
    return Tree(base, read_base(base), chain)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Conv1D layers, which keep their weights as [in, out]."""
    root = tmp_path_factory.mktemp("gpt2")
    base = tiny.gpt2(root / "base")
    chain = [
        tiny.adapter(base, root / f"level{rank}", seed=rank, rank=rank, alpha=5, targets=targets, fan_in_fan_out=True)
        for rank, targets in ((6, ["c_attn", "c_proj", "c_fc"]), (3, ["c_attn"]), (2, ["c_fc"]))
    ]
    return Tree(base, read_base(base), chain)


@pytest.fixture(params=["llama", "gpt2"])
def tree(request: pytest.FixtureRequest) -> Tree:
    """Both trees in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Tree)
    return found
