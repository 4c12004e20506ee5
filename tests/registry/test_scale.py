"""What an answer costs does not grow with the tree: rows read, counted by PostgreSQL itself, and plans."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from loratree_registry.database import queries
from loratree_registry.database.engine import reading, writing
from loratree_registry.embedded.registry import EmbeddedRegistry, open_embedded
from loratree_registry.errors import NotFound
from tests.registry.conftest import Storage
from tests.registry.material import Material, publish

MANY = 10_000
READ = 20  # rows of one table that one page of 3 may read
CHILDREN = """
INSERT INTO nodes (base_id, parent_id, path, level, last_number, created_at)
SELECT 1, 1, 'tiny/n' || n, 'domain', 0, now() FROM generate_series(1, :many) n
"""
VERSIONS = """
INSERT INTO versions (node_id, base_id, number, digest, content, pin_id, pin_found, config, summary, size, created_at)
SELECT node_id, base_id, number + n, 'sha256:' || encode(sha256((id || ' ' || n)::bytea), 'hex'), content, {pin},
    'explicit', config, summary, size, now() FROM versions, generate_series(1, :many) n WHERE id = {like}
"""

EVENTS = """
WITH written AS (
    INSERT INTO events (node_id, kind, detail, created_at)
    SELECT 1, 'node-created', '{}', now() FROM generate_series(1, :many) RETURNING id
) INSERT INTO event_views (node_id, event_id) SELECT 1, id FROM written
"""

FILES = """
WITH made AS (INSERT INTO blobs (sha256, size, touched_at) SELECT digest, 1, now() FROM versions WHERE id > 2)
INSERT INTO version_files (version_id, name, size, sha256)
SELECT id, 'adapter_model.safetensors', 1, digest FROM versions WHERE id > 2
"""


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, material: Material, server: Any) -> Iterator[EmbeddedRegistry]:
    """tiny has 10,000 children; tiny/a 10,001 versions on the base; tiny/a/b has 10,001 on tiny/a@1."""
    storage = Storage(tmp_path_factory.mktemp("scale"), lambda: server, NotImplemented, NotImplemented, NotImplemented)
    with server.migrated() as address:
        registry = open_embedded(storage.settings(LORATREE_DATABASE=address))
        registry.add_base("tiny", material.base)
        publish(registry, "tiny/a", material.rank4)
        publish(registry, "tiny/a/b", material.rank2)
        registry.set_alias("tiny/a", "stable", version=1, expected=None)
        with writing(registry._engine) as connection:
            connection.execute(text(CHILDREN), {"many": MANY})
            connection.execute(text(VERSIONS.format(pin="NULL", like=1)), {"many": MANY})
            connection.execute(text(VERSIONS.format(pin="1", like=2)), {"many": MANY})
            connection.execute(text(EVENTS), {"many": MANY})
            connection.execute(text(FILES))
        with registry._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ANALYZE"))
        yield registry
        registry.close()


def start_of(registry: EmbeddedRegistry, number: int) -> str:
    """tiny/a/b by the first digits of the digest of one of its versions."""
    return f"tiny/a/b@{registry.version(f'tiny/a/b@{number}').digest[:19]}"


def miss(registry: EmbeddedRegistry) -> None:
    """Asks by the start of a digest that no version has."""
    with pytest.raises(NotFound):
        registry.version("tiny/a/b@sha256:000000000000")


ASKS: dict[str, Callable[[EmbeddedRegistry], object]] = {
    "node": lambda registry: registry.node("tiny"),
    "children": lambda registry: registry.children("tiny", limit=3),
    "children, later": lambda registry: registry.children("tiny", limit=3, after="tiny/n5"),
    "descendants": lambda registry: registry.descendants("tiny", limit=3),
    "descendants, later": lambda registry: registry.descendants("tiny", limit=3, after="tiny/n5"),
    "events": lambda registry: registry.events("tiny", limit=3),
    "events, later": lambda registry: registry.events("tiny", limit=3, after="5000"),
    "a version by its alias": lambda registry: registry.version("tiny/a@stable"),
    "a version by its number": lambda registry: registry.version("tiny/a@2"),
    "a version by the start of its digest": lambda registry: registry.version(start_of(registry, 7)),
    "a version by a start that no digest has": miss,
    "resolve": lambda registry: registry.resolve("tiny/a/b@1"),
    "follow latest": lambda registry: registry.resolve("tiny/a/b", follow="latest"),
    "follow an alias": lambda registry: registry.resolve("tiny/a/b", follow="stable"),
    "lineage": lambda registry: registry.lineage("tiny/a/b"),
    "versions": lambda registry: registry.versions("tiny/a", limit=3),
    "dependents": lambda registry: registry.dependents("tiny/a@1", limit=3),
    "dependents, later": lambda registry: registry.dependents("tiny/a@1", limit=3, after="15000"),
    "holders of bytes": lambda registry: registry.holders(registry.version("tiny/a@1").files[0].sha256),
    "quarantined holders": lambda registry: registry.holders(
        registry.version("tiny/a@1").files[0].sha256, quarantined=True
    ),
    "dependents of the base": lambda registry: registry.dependents("tiny", limit=3),
}


@pytest.mark.parametrize("ask", ASKS)
def test_an_answer_reads_what_it_shows_however_much_there_is(behind: EmbeddedRegistry, ask: str) -> None:
    plans = plans_of(behind, lambda: ASKS[ask](behind))
    assert plans
    read = [(rows, node) for plan in plans for rows, node in scans(plan)]
    assert [found for found in read if found[0] > READ] == []


def test_whether_bytes_are_quarantined_reads_the_quarantined_versions(behind: EmbeddedRegistry) -> None:
    """However many versions hold the bytes, such as what all users start from."""
    [file] = behind.version("tiny/a@1").files

    def find() -> None:
        with reading(behind._engine) as connection:
            queries.publishing.same_content(connection, 1, file.sha256, file.sha256)

    read = [found for plan in plans_of(behind, find) for found in scans(plan)]
    assert sum(rows for rows, node in read if node.endswith(("versions", "version_files"))) == 0
    assert max(rows for rows, _ in read) <= 1


def test_counting_stops_where_it_was_told_to(behind: EmbeddedRegistry) -> None:
    def count() -> None:
        with reading(behind._engine) as connection:
            assert queries.nodes.count_descendants(connection, "tiny", limit=3) == 3

    assert max(rows for plan in plans_of(behind, count) for rows, _ in scans(plan)) <= READ


def plans_of(behind: EmbeddedRegistry, ask: Callable[[], object]) -> list[Any]:
    """PostgreSQL's plan of each query that is asked meanwhile, with the rows that it really read."""
    plans: list[Any] = []

    def explain(connection: Connection, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        if statement.startswith(("SELECT", "WITH")):
            with connection.connection.cursor() as cursor:
                cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", values)
                plans.append(cursor.fetchone()[0][0]["Plan"])  # type: ignore[index]

    event.listen(behind._engine, "before_cursor_execute", explain)
    try:
        ask()
    finally:
        event.remove(behind._engine, "before_cursor_execute", explain)
    return plans


def scans(plan: Any) -> Iterator[tuple[float, str]]:
    """Of each step that reads a table: the rows that it read in all, those it threw away too."""
    if "Relation Name" in plan:
        thrown = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        yield (plan["Actual Rows"] + thrown) * plan["Actual Loops"], f"{plan['Node Type']} {plan['Relation Name']}"
    for below in plan.get("Plans", []):
        yield from scans(below)
