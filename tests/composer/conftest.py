"""Bases and chains that the composer's tests share; each is made once."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from loratree_composer.base.manifest import read_base
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import Submission
from loratree_registry.core.registry import Registry
from loratree_registry.workspace.adapter_directory import read_adapter_directory
from loratree_registry.workspace.base_locations import remember_base
from tests import tiny

LEVELS = ("medicine", "cardiology", "diagnosis", "alice")


@dataclass(frozen=True)
class Tree:
    """A base's directory, its manifest, and a chain of PEFT directories from root to leaf."""

    base: Path
    manifest: BaseManifest
    chain: list[Path]


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Linear layers, lm_head with its copy of the base too: mixed ranks, rsLoRA, patterns, a leaf on two modules."""
    root = tmp_path_factory.mktemp("llama")
    base = tiny.llama(root / "base")
    chain = [
        tiny.adapter(base, root / "domain", seed=1, rank=8, alpha=12),
        tiny.adapter(
            base, root / "subdomain", seed=2, rank=6, alpha=9, use_rslora=True, targets=["q_proj", "v_proj", "lm_head"]
        ),
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


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every kind of device that this machine has."""
    return torch.device(request.param)


@dataclass(frozen=True)
class Catalog:
    """A registry on this machine that holds the llama tree as tiny/medicine/…/alice, a level an adapter."""

    registry: Registry
    home: Path
    tree: Tree

    def path(self, depth: int) -> str:
        """The path of the level that is `depth` below the base."""
        return "/".join(("tiny", *LEVELS[:depth]))

    @property
    def leaf(self) -> str:
        return self.path(len(LEVELS))

    def publish(self, directory: Path, path: str, *, parent: str) -> None:
        """Uploads and publishes one PEFT directory, pinned to `parent`."""
        adapter = read_adapter_directory(directory)
        with adapter.weights.open("rb") as stream:
            self.registry.upload(stream, sha256=adapter.file.sha256, size=adapter.file.size)
        self.registry.publish(
            path, Submission(config=adapter.config, files=[adapter.file], parent=parent, found="explicit")
        )


def open_catalog(home: Path, tree: Tree) -> Catalog:
    # Imported here, so that the arithmetic's tests run where no database is installed.
    from loratree_registry.embedded.registry import open_embedded
    from loratree_registry.settings import Settings

    return Catalog(open_embedded(Settings.from_environment({"LORATREE_HOME": str(home)})), home, tree)


@pytest.fixture(scope="session")
def filled(llama: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LORATREE_HOME with the llama tree published, for tests to copy."""
    catalog = open_catalog(tmp_path_factory.mktemp("composer") / "home", llama)
    catalog.registry.add_base("tiny", llama.manifest)
    remember_base(catalog.home, llama.manifest.digest, llama.base)
    for depth, directory in enumerate(llama.chain):
        catalog.publish(directory, catalog.path(depth + 1), parent=catalog.path(depth) if depth else "base")
    catalog.registry.close()
    return catalog.home


@pytest.fixture
def catalog(filled: Path, llama: Tree, tmp_path: Path) -> Iterator[Catalog]:
    """The filled registry, copied for this test."""
    found = open_catalog(Path(shutil.copytree(filled, tmp_path / "home")), llama)
    yield found
    found.registry.close()
