"""What publishing looks for and inserts under its node's lock, where others wait: as few round trips as can be."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    Insert,
    Select,
    Table,
    bindparam,
    insert,
    select,
    union_all,
    update,
)

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.paths import ancestors_of
from loratree_registry.core.times import now
from loratree_registry.database.queries.events import insert_event
from loratree_registry.database.rows import SameContent
from loratree_registry.database.tables import event_views, events, nodes, tombstones, version_files, versions


def _holding(table: Table) -> Select[Any]:
    """The rows of a node in one table that hold a content."""
    here = (table.c.node_id == bindparam("node_id")) & (table.c.content == bindparam("content"))
    return select(table.c.number, table.c.digest, table.c.quarantined_reason).where(here)


_SAME = union_all(
    _holding(versions),
    _holding(tombstones).where(tombstones.c.quarantined_reason.is_not(None)),
)
_NUMBERED = (
    update(nodes).where(nodes.c.id == bindparam("version_node_id")).values(last_number=bindparam("version_number"))
)
_INSERT = insert(versions).returning(versions.c.id)
_INSERT_FILE = insert(version_files)


def same_content(connection: Connection, node_id: int, content: str) -> list[SameContent]:
    """The versions at a node that hold this content, and the deleted ones that were quarantined, newest first."""
    found = connection.execute(_SAME, {"node_id": node_id, "content": content})
    return sorted((SameContent(**row._asdict()) for row in found), key=lambda row: row.number, reverse=True)


def insert_published(
    connection: Connection, path: str, file: FileDigest, *, detail: dict[str, Any], **version: Any
) -> None:
    """Inserts a version at `path`, its file, whose blob must be stored, and the event that tells of it."""
    kind, held = "version-published", {"name": file.name, "size": file.size, "sha256": file.sha256}
    if connection.dialect.name == "postgresql":
        event = {"node_id": version["node_id"], "kind": kind, "detail": detail, "created_at": now()}
        given = _prefixed("version", version) | _prefixed("file", held) | _prefixed("event", event)
        connection.execute(_at_once(tuple(version)), given | {"paths": [*ancestors_of(path), path]})
        return
    connection.execute(_NUMBERED, {f"version_{name}": version[name] for name in ("node_id", "number")})
    version_id = connection.scalar(_INSERT, version)
    connection.execute(_INSERT_FILE, {"version_id": version_id, **held})
    insert_event(connection, path, kind, **detail)


@cache
def _at_once(columns: tuple[str, ...]) -> Select[Any]:
    """All of it in one statement, which SQLite does not have; nor is it a round trip away."""
    version = _inserted(versions, "version", columns).returning(versions.c.id).cte("version")
    event = _inserted(events, "event", ("node_id", "kind", "detail", "created_at")).returning(events.c.id).cte("event")
    file = select(version.c.id, *(_bound(version_files, "file", name) for name in ("name", "size", "sha256")))
    event_id = select(event.c.id).scalar_subquery()
    seen_from = select(nodes.c.id, event_id).where(nodes.c.path.in_(bindparam("paths", expanding=True)))
    return select(version.c.id).add_cte(
        _NUMBERED.cte("numbered"),
        insert(version_files).from_select(["version_id", "name", "size", "sha256"], file).cte("file"),
        insert(event_views).from_select(["node_id", "event_id"], seen_from).cte("views"),
    )


def _inserted(table: Table, prefix: str, columns: tuple[str, ...]) -> Insert:
    return insert(table).values({name: _bound(table, prefix, name) for name in columns})


def _bound(table: Table, prefix: str, name: str) -> BindParameter[Any]:
    return bindparam(f"{prefix}_{name}", type_=table.c[name].type)


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in values.items()}
