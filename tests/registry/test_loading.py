"""Loading writes what publishing writes: on both databases, a loaded tree answers as a published one does."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loading import FirstVersion, LoadedNode, load
from loratree_registry.core.records import Version
from loratree_registry.core.registry import Registry
from loratree_registry.database.engine import writing
from loratree_registry.embedded.registry import EmbeddedRegistry, open_embedded
from loratree_registry.errors import Conflict, NotFound
from loratree_registry.settings import Settings
from tests.registry.conftest import REGISTRIES, Storage
from tests.registry.material import Material, publish

A, B, C = "tiny/a", "tiny/a/b", "tiny/a/c"


@pytest.fixture
def published(tmp_path: Path, material: Material) -> Iterator[EmbeddedRegistry]:
    """tiny/a at version 1, and below it b at version 1, stable, and the grouping c."""
    registry = open_embedded(Settings.from_environment({"LORATREE_HOME": str(tmp_path)}))
    registry.add_base("tiny", material.base)
    publish(registry, A, material.rank4)
    publish(registry, B, material.rank2)
    registry.set_alias(B, "stable", version=1, expected=None)
    registry.create_node(C)
    yield registry
    registry.close()


@pytest.fixture(params=["embedded-sqlite", "embedded-postgresql"])
def loaded(request: pytest.FixtureRequest, storage: Storage, material: Material) -> Iterator[Any]:
    with REGISTRIES[request.param](storage) as registry:
        registry.add_base("tiny", material.base)
        yield registry


def test_a_loaded_tree_answers_as_the_published_one(published: EmbeddedRegistry, loaded: EmbeddedRegistry) -> None:
    with writing(loaded._engine) as connection:
        load(connection, nodes(published))
    assert answers(loaded) == answers(published)


def test_nodes_are_loaded_below_earlier_ones_and_pinned_to_the_nearest_version_above(
    published: EmbeddedRegistry, loaded: EmbeddedRegistry
) -> None:
    for node in nodes(published):
        with writing(loaded._engine) as connection:
            load(connection, [node])
    assert answers(loaded) == answers(published)


def test_what_is_published_after_a_load_takes_keys_of_its_own(
    published: EmbeddedRegistry, loaded: EmbeddedRegistry, material: Material
) -> None:
    with writing(loaded._engine) as connection:
        load(connection, nodes(published))
    assert publish(loaded, f"{C}/d", material.rank2, parent=f"{A}@1").version.pin.path == A
    assert publish(loaded, B, material.rank2.variant(1)).version.number == 2


def test_a_node_whose_parent_is_missing_is_not_loaded(published: EmbeddedRegistry, loaded: EmbeddedRegistry) -> None:
    with pytest.raises(NotFound, match="tiny/a is not known"), writing(loaded._engine) as connection:
        load(connection, nodes(published)[1:])
    assert loaded.descendants("tiny").items == []


def test_a_node_that_is_there_already_is_a_conflict(published: EmbeddedRegistry, loaded: EmbeddedRegistry) -> None:
    loaded.create_node(C, level="subdomain")
    with pytest.raises(Conflict), writing(loaded._engine) as connection:
        load(connection, nodes(published)[-1:])


def nodes(registry: Registry) -> list[LoadedNode]:
    """What would have to be loaded to make the published tree."""
    return [
        LoadedNode(path=node.path, level=node.level, version=_first(registry.version(node.path)) if node.head else None)
        for node in registry.descendants("tiny").items
    ]


def _first(version: Version) -> FirstVersion:
    summary = {name: getattr(version.summary, name) for name in version.summary.__dataclass_fields__}
    return FirstVersion(
        digest=version.digest,
        content=version.content,
        config=version.config,
        summary=summary,
        files=tuple(version.files),
        found="assumed",
        aliases=("stable",) if version.path == B else (),
    )


def answers(registry: Registry) -> list[Any]:
    """What the registry says of the tree, without its times and without the order in which events were numbered."""
    events = [(event.path, event.kind, str(event.detail)) for event in registry.events("tiny").items]
    return [
        [replace(node, created_at="") for node in registry.descendants("tiny").items],
        [replace(registry.version(ref), created_at="") for ref in (A, B)],
        [registry.resolve(f"{B}@stable"), registry.lineage(B), registry.ancestry(B)[0].number],
        sorted(events),
        [len(registry.events(path).items) for path in (A, B, C)],
    ]
