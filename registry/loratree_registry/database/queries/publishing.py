"""Queries of publishing. They hold a node's lock that others wait for, so they make as few round trips as possible."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import (
    BindParameter,
    Connection,
    Insert,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    insert,
    null,
    select,
    union_all,
    update,
)

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.paths import ancestors_of
from loratree_registry.core.times import now
from loratree_registry.database.queries.events import insert_event
from loratree_registry.database.queries.shared import holds_bytes
from loratree_registry.database.rows import Barred, SameContent
from loratree_registry.database.tables import event_views, events, nodes, tombstones, version_files, versions


def _select_content(table: Table) -> Select[Any]:
    """Select the rows of a node in `table` that have a given content."""
    here = (table.c.node_id == bindparam("node_id")) & (table.c.content == bindparam("content"))
    return select(cast(null(), Text).label("path"), table.c.number, table.c.digest, table.c.quarantined_reason).where(
        here
    )


_BARRED = (
    select(nodes.c.path, versions.c.number, versions.c.digest, versions.c.quarantined_reason)
    .join_from(versions, nodes, versions.c.node_id == nodes.c.id)
    .where(versions.c.quarantined_at.is_not(None), holds_bytes(bindparam("sha256")))
    .order_by(versions.c.id)
    .limit(1)
    .subquery("barred")
)
_SAME = union_all(
    _select_content(versions),
    _select_content(tombstones).where(tombstones.c.quarantined_reason.is_not(None)),
    select(_BARRED),
)
_NUMBERED = (
    update(nodes).where(nodes.c.id == bindparam("version_node_id")).values(last_number=bindparam("version_number"))
)
_INSERT = insert(versions).returning(versions.c.id)
_INSERT_FILE = insert(version_files)


def same_content(
    connection: Connection, node_id: int, content: str, sha256: str
) -> tuple[list[SameContent], Barred | None]:
    """Return what a node has of a content, newest first, and a quarantined version of any node with the same bytes.

    The first are the node's versions with this content, and its quarantined tombstones with it.
    """
    rows = connection.execute(_SAME, {"node_id": node_id, "content": content, "sha256": sha256}).all()
    same = [
        SameContent(number=number, digest=digest, quarantined_reason=reason)
        for path, number, digest, reason in rows
        if path is None
    ]
    barred = [Barred(ref=f"{path}@{number}", reason=reason) for path, number, _, reason in rows if path is not None]
    return sorted(same, key=lambda row: row.number, reverse=True), next(iter(barred), None)


def insert_published(
    connection: Connection, path: str, file: FileDigest, *, detail: dict[str, Any], **version: Any
) -> None:
    """Insert a version at `path`, its file and its event. The file's blob must be stored already."""
    kind, stored = "version-published", {"name": file.name, "size": file.size, "sha256": file.sha256}
    if connection.dialect.name == "postgresql":
        event = {"node_id": version["node_id"], "kind": kind, "detail": detail, "created_at": now()}
        parameters = _add_prefix("version", version) | _add_prefix("file", stored) | _add_prefix("event", event)
        connection.execute(_build_statement(tuple(version)), parameters | {"paths": [*ancestors_of(path), path]})
        return
    connection.execute(_NUMBERED, {f"version_{name}": version[name] for name in ("node_id", "number")})
    version_id = connection.scalar(_INSERT, version)
    connection.execute(_INSERT_FILE, {"version_id": version_id, **stored})
    insert_event(connection, path, kind, **detail)


@cache
def _build_statement(columns: tuple[str, ...]) -> Select[Any]:
    """Build one statement for all inserts. SQLite cannot run it, and has no round trips to save."""
    version = _to_insert(versions, "version", columns).returning(versions.c.id).cte("version")
    event = _to_insert(events, "event", ("node_id", "kind", "detail", "created_at")).returning(events.c.id).cte("event")
    file = select(version.c.id, *(_bind(version_files, "file", name) for name in ("name", "size", "sha256")))
    event_id = select(event.c.id).scalar_subquery()
    seen_from = select(nodes.c.id, event_id).where(nodes.c.path.in_(bindparam("paths", expanding=True)))
    return select(version.c.id).add_cte(
        _NUMBERED.cte("numbered"),
        insert(version_files).from_select(["version_id", "name", "size", "sha256"], file).cte("file"),
        insert(event_views).from_select(["node_id", "event_id"], seen_from).cte("views"),
    )


def _to_insert(table: Table, prefix: str, columns: tuple[str, ...]) -> Insert:
    return insert(table).values({name: _bind(table, prefix, name) for name in columns})


def _bind(table: Table, prefix: str, name: str) -> BindParameter[Any]:
    return bindparam(f"{prefix}_{name}", type_=table.c[name].type)


def _add_prefix(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in values.items()}
