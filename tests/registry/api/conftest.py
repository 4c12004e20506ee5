"""A server over a registry that holds one base and one version, and a bare HTTP client of it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from loratree_registry.embedded import EmbeddedRegistry
from tests.registry.conftest import Storage, embedded_sqlite
from tests.registry.material import Material, publish
from tests.registry.serving import Served

MED = "tiny/medicine"


@pytest.fixture
def behind(storage: Storage, material: Material) -> Iterator[EmbeddedRegistry]:
    """The registry behind the server: the base `tiny`, and version 1 at tiny/medicine, named stable."""
    with embedded_sqlite(storage) as registry:
        registry.add_base("tiny", material.base)
        publish(registry, MED, material.rank4)
        registry.set_alias(MED, "stable", version=1, expected=None)
        yield registry


@pytest.fixture
def http(behind: EmbeddedRegistry, web: Served, tmp_path: Path) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=web.over(behind, tmp_path)) as client:
        yield client
