"""The requests that reading a chain sends to a registry: over HTTP each request is a round trip."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from loratree_composer.adapters.budget import Budget
from loratree_composer.adapters.reader import AdapterReader
from loratree_registry.core.records import Version
from loratree_registry.embedded.registry import EmbeddedRegistry
from tests import tiny
from tests.composer.conftest import LEVELS, Catalog


class Noting(EmbeddedRegistry):
    """A registry that records the refs of the requested versions."""

    asked: list[str]

    def version(self, ref: str) -> Version:
        self.asked.append(ref)
        return super().version(ref)

    def ancestry(self, ref: str) -> list[Version]:
        self.asked.append(ref)
        return super().ancestry(ref)


@pytest.fixture
def noting(catalog: Catalog) -> Iterator[Noting]:
    assert isinstance(catalog.registry, EmbeddedRegistry)
    registry = Noting(catalog.registry._engine, catalog.registry._blobs)
    registry.asked = []
    with closing(registry):
        yield registry


def test_a_chains_versions_come_at_once_however_deep_and_not_again(catalog: Catalog, noting: Noting) -> None:
    adapters = AdapterReader(noting, catalog.tree.manifest, catalog.home)
    first = adapters.load_chain(noting.resolve(catalog.leaf))
    assert (len(first), noting.asked) == (len(LEVELS), [f"{catalog.leaf}@1"])
    adapters.load_chain(noting.resolve(catalog.leaf))
    adapters.load_chain(noting.resolve(catalog.path(2)))
    assert noting.asked == [f"{catalog.leaf}@1"]


def test_a_followed_version_that_no_pin_leads_to_is_asked_for_too(catalog: Catalog, noting: Noting) -> None:
    newer = tiny.adapter(catalog.tree.base, catalog.home / "newer", seed=11, rank=3)
    catalog.publish(newer, catalog.path(1), parent="base")
    adapters = AdapterReader(noting, catalog.tree.manifest, catalog.home)
    followed = adapters.load_chain(noting.resolve(catalog.leaf, follow="latest"))
    assert noting.asked == [f"{catalog.leaf}@1", f"{catalog.path(1)}@2"]
    pinned = adapters.load_chain(noting.resolve(catalog.leaf))
    assert [new is old for (new, _), (old, _) in zip(followed, pinned, strict=True)] == [False, True, True, True]


def test_what_does_not_fit_into_memory_is_read_again_in_one_question(catalog: Catalog, noting: Noting) -> None:
    adapters = AdapterReader(noting, catalog.tree.manifest, catalog.home, budget=Budget(1))
    for _ in range(2):
        assert len(adapters.load_chain(noting.resolve(catalog.leaf))) == len(LEVELS)
    assert noting.asked == [f"{catalog.leaf}@1"] * 2
