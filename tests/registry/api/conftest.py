"""A server over a registry that holds one base and one version, and a bare HTTP client of it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.settings import Settings
from tests.registry.fresh import open_fresh
from tests.registry.material import Material, publish
from tests.registry.serving import Served

MED = "tiny/medicine"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def behind(home: Path, material: Material) -> Iterator[EmbeddedRegistry]:
    """The registry behind the server: the base `tiny`, and version 1 at tiny/medicine, named stable.

    A module's tests share it: they write elsewhere than at tiny/medicine.
    """
    registry = open_fresh(Settings.from_environment({"LORATREE_HOME": str(home)}))
    registry.add_base("tiny", material.base)
    publish(registry, MED, material.rank4)
    registry.set_alias(MED, "stable", version=1, expected=None)
    yield registry
    registry.close()


@pytest.fixture
def http(behind: EmbeddedRegistry, web: Served, tmp_path: Path) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=web.over(behind, tmp_path), verify=False
    ) as client:  # plain HTTP: no certificates to read
        yield client
