"""No write holds the database's lock for long, however large its input: what takes long comes before BEGIN."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import event, text

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.manifest import BaseManifest, Parameter
from loratree_registry.database.engine import writing
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.tensor_files.checkpoint_files import MAX_FILES
from tests.registry.conftest import Storage, embedded_postgresql, embedded_sqlite
from tests.registry.material import Adapter, Material, publish, sha256

LONGEST = 1.0  # seconds; a writer waits for 30


@pytest.fixture(params=[embedded_sqlite, embedded_postgresql])
def registry(request: pytest.FixtureRequest, storage: Storage, material: Material) -> Iterator[EmbeddedRegistry]:
    with request.param(storage) as opened:
        opened.add_base("tiny", material.base)
        yield opened


@contextmanager
def timing(registry: EmbeddedRegistry) -> Iterator[list[float]]:
    """Collects the seconds of each transaction that writes, from its BEGIN to its end."""
    begun: dict[Any, float] = {}
    held: list[float] = []

    def begin(connection: Any) -> None:
        if connection.get_execution_options().get("immediate"):
            begun[id(connection)] = time.perf_counter()

    def end(connection: Any) -> None:
        if id(connection) in begun:
            held.append(time.perf_counter() - begun.pop(id(connection)))

    engine = registry._engine
    for name, listener in (("begin", begin), ("commit", end), ("rollback", end)):
        event.listen(engine, name, listener)
    try:
        yield held
    finally:
        for name, listener in (("begin", begin), ("commit", end), ("rollback", end)):
            event.remove(engine, name, listener)


def test_the_largest_publish_holds_the_lock_for_less_than_a_second(
    registry: EmbeddedRegistry, material: Material, record_property: Callable[[str, object], None]
) -> None:
    largest = {"notes": {f"{n:05}": "x" * 10 for n in range(45_000)}}
    patterns = {"rank_pattern": {f"layers.{n}.none": 4 for n in range(40_000)}}
    with timing(registry) as held:
        parent = "base"
        for path, config in (("tiny/a", largest), ("tiny/a/b", patterns), ("tiny/a/b/c", largest)):
            adapter = Adapter(material.rank4.config | config, material.rank4.weights)
            published = publish(registry, path, adapter, parent)
            assert published.created
            parent = f"{path}@1"
        assert not publish(registry, path, adapter, "tiny/a/b@1").created
    record_property("measured", f"the largest publish writes for {max(held):.2f} s on {registry._engine.dialect.name}")
    assert max(held) < LONGEST


def test_the_largest_manifest_holds_the_lock_for_less_than_a_second(
    registry: EmbeddedRegistry, record_property: Callable[[str, object], None]
) -> None:
    manifest = BaseManifest(
        parameters=tuple(
            Parameter(name=f"layers.{n}.w", shape=(64, 64), dtype="F32", kind="Norm", sha256=sha256(str(n).encode()))
            for n in range(110_000)
        )
    )
    with timing(registry) as held:
        registry.add_base("large", manifest)
        registry.add_base("large", replace(manifest, leftovers=("a.b",)))
        registry.add_base("large", manifest)
    assert registry.base_manifest("large").leftovers == ("a.b",)
    record_property(
        "measured", f"the largest manifest is written in {max(held):.2f} s on {registry._engine.dialect.name}"
    )
    assert max(held) < LONGEST


def test_the_longest_list_of_files_holds_the_lock_for_less_than_a_second(registry: EmbeddedRegistry) -> None:
    files = [FileDigest(f"model-{n}.safetensors", 1, sha256(str(n).encode())) for n in range(MAX_FILES)]
    with timing(registry) as held:
        assert registry.missing_files("tiny", files) == files
    assert max(held) < LONGEST


LIKE_THE_FIRST = """
WITH RECURSIVE numbers(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM numbers WHERE n < :many)
INSERT INTO versions (node_id, base_id, number, digest, content, pin_found, config, summary, size, created_at)
SELECT node_id, base_id, n, substr(digest, 1, 59) || substr('000000000000' || n, -12), content, pin_found, config,
    summary, size, created_at FROM versions, numbers
"""


NODES = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 10000)
INSERT INTO nodes (base_id, parent_id, path, level, last_number, created_at)
SELECT base_id, parent_id, 'tiny/n' || n, level, 0, created_at FROM nodes, numbers WHERE path = 'tiny/a'
"""
VERSIONS = """
WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 3)
INSERT INTO versions (node_id, base_id, number, digest, content, pin_found, config, summary, size, created_at)
SELECT nodes.id, versions.base_id, n, digest || '', content, pin_found, config, summary, size, versions.created_at
FROM versions, nodes, numbers WHERE nodes.path LIKE 'tiny/n%' AND versions.number = 1
"""


def test_a_dry_run_over_ten_thousand_nodes_takes_no_lock_and_is_fast(
    storage: Storage, material: Material, record_property: Callable[[str, object], None]
) -> None:
    with embedded_sqlite(storage) as registry:
        registry.add_base("tiny", material.base)
        publish(registry, "tiny/a", material.rank4)
        with writing(registry._engine) as connection:
            connection.execute(text(NODES))
            digest = f"'sha256:' || substr('{'0' * 64}' || (nodes.id * 3 + n), -64)"
            connection.execute(text(VERSIONS.replace("digest || ''", digest)))
        begun, found, after = time.perf_counter(), 0, None
        with timing(registry) as held:
            while True:
                page = registry.crowded("tiny", keep=2, after=after, limit=1000)
                found += sum(node.deleted == [1] and node.kept == 2 for node in page.items)
                after = page.next
                if after is None:
                    break
        seconds = time.perf_counter() - begun
        record_property("measured", f"a dry run of retention over 10,000 nodes takes {seconds:.2f} s")
        assert (found, held) == (10_000, [])
        assert seconds < 10


def test_retention_deletes_thousands_of_versions_in_many_short_transactions(
    storage: Storage, material: Material, record_property: Callable[[str, object], None]
) -> None:
    with embedded_sqlite(storage) as registry:
        registry.add_base("tiny", material.base)
        publish(registry, "tiny/a", material.rank4)
        with writing(registry._engine) as connection:
            connection.execute(text(LIKE_THE_FIRST), {"many": 3_000})
            connection.execute(text("UPDATE nodes SET last_number = 3000 WHERE path = 'tiny/a'"))
        with timing(registry) as held:
            planned = registry.retain("tiny/a", keep=10, dry_run=True)
            assert held == []  # a dry run takes no lock
            done = registry.retain("tiny/a", keep=10)
        assert done == planned
        assert (done.kept, done.deleted) == (10, list(range(1, 2_991)))
        assert len(held) == 6
        record_property("measured", f"retention deletes 500 versions in {max(held):.2f} s")
        assert max(held) < LONGEST
        assert registry.retain("tiny/a", keep=10).deleted == []
