"""A tree with forty users below one task, whose adapters differ in their values."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.composer.conftest import Catalog, Tree, open_catalog

USERS = 40


@pytest.fixture(scope="session")
def grown(filled: Path, llama: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The filled registry with users beside alice, for tests to copy."""
    home = Path(shutil.copytree(filled, tmp_path_factory.mktemp("grown") / "home"))
    catalog = open_catalog(home, llama)
    folder = Path(shutil.copytree(llama.chain[-1], home.parent / "user"))
    values = load_file(folder / "adapter_model.safetensors")
    for at in range(USERS):
        torch.manual_seed(at)
        save_file(
            {name: torch.randn_like(value) * 0.2 for name, value in values.items()},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        catalog.publish(folder, f"{catalog.path(3)}/user{at}", parent=catalog.path(3))
    catalog.registry.close()
    return home


@pytest.fixture
def forest(grown: Path, llama: Tree, tmp_path: Path) -> Iterator[Catalog]:
    """The grown registry, copied for this test."""
    found = open_catalog(Path(shutil.copytree(grown, tmp_path / "home")), llama)
    yield found
    found.registry.close()


def user(catalog: Catalog, at: int) -> str:
    """The path of a user."""
    return f"{catalog.path(3)}/user{at}"
