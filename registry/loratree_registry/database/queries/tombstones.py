"""Queries that delete versions and read their tombstones."""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    String,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)

from loratree_registry.core.paths import descendant_range
from loratree_registry.core.times import now
from loratree_registry.database.queries.shared import begins_with, head_of
from loratree_registry.database.rows import TombstoneRow
from loratree_registry.database.tables import UtcTime, aliases, blobs, nodes, tombstones, version_files, versions

_columns = [column for column in tombstones.c if column.name != "node_id"]
_TOMBSTONE = select(nodes.c.path, *_columns).join_from(tombstones, nodes)
_moved = ("node_id", "number", "digest", "content", "created_at", "quarantined_reason")


def bury_versions(connection: Connection, version_ids: list[int], reason: str) -> None:
    """Turn versions into tombstones, and start the grace period of their blobs. No pin or alias may name a version."""
    buried, moment = versions.c.id.in_(version_ids), now()
    added = (literal(reason, String), literal(moment, UtcTime()))
    moved = select(*(versions.c[name] for name in _moved), *added).where(buried)
    files = version_files.c.version_id.in_(version_ids)
    freed = blobs.c.sha256.in_(select(version_files.c.sha256).where(files))
    in_order = select(blobs.c.sha256).where(freed).order_by(blobs.c.sha256).with_for_update(key_share=True)
    connection.execute(in_order).all()  # so that two deletions of the same blobs do not deadlock
    connection.execute(insert(tombstones).from_select([*_moved, "reason", "deleted_at"], moved))
    connection.execute(update(blobs).where(freed).values(touched_at=moment))
    connection.execute(delete(version_files).where(files))
    connection.execute(delete(versions).where(buried))


def find_tombstone(connection: Connection, node_id: int, selector: int | str) -> TombstoneRow | None:
    """Return the tombstone with a number, or the newest whose digest begins with a selector, or None."""
    is_it = (
        (tombstones.c.number == selector,) if isinstance(selector, int) else begins_with(tombstones.c.digest, selector)
    )
    return next(iter(_read(connection, _select_newest_first(node_id).where(*is_it).limit(1))), None)


def list_tombstones(connection: Connection, node_id: int, *, before: int | None, limit: int) -> list[TombstoneRow]:
    """Return the tombstones at a node, newest first."""
    query = _select_newest_first(node_id).limit(limit)
    return _read(connection, query if before is None else query.where(tombstones.c.number < before))


def expendable_versions(
    connection: Connection, node_id: int, *, keep: int, limit: int | None = None
) -> list[tuple[int, int, int]]:
    """Return the key, number and size of the versions that retention may delete, oldest first, at most `limit`.

    Retention keeps the newest `keep` versions, the head, and each version that an alias or a pin names.
    """
    newest = select(versions.c.number).where(versions.c.node_id == node_id).order_by(versions.c.number.desc())
    kept_from = newest.limit(1).offset(keep - 1).scalar_subquery()
    head = (
        select(func.max(versions.c.number))
        .where(versions.c.node_id == node_id, versions.c.withdrawn_at.is_(None))
        .scalar_subquery()
    )
    query = select(versions.c.id, versions.c.number, versions.c.size).where(
        versions.c.node_id == node_id,
        versions.c.number < kept_from,
        versions.c.number != func.coalesce(head, 0),
        *_is_unused(versions.c.id),
    )
    return [
        (row.id, row.number, row.size) for row in connection.execute(query.order_by(versions.c.number).limit(limit))
    ]


def crowded_nodes(
    connection: Connection, path: str, *, keep: int, after: str | None, limit: int
) -> list[tuple[int, str, int]]:
    """Return the key, path and number of versions of the nodes at `path` and below with more than `keep` versions."""
    first, end = descendant_range(path)
    counted = select(func.count()).where(versions.c.node_id == nodes.c.id).scalar_subquery()
    begin = nodes.c.path > after if after is not None else (nodes.c.path == path) | (nodes.c.path > first)
    here = (nodes.c.path == path) | ((nodes.c.path > first) & (nodes.c.path < end))
    bounds = (
        nodes.c.path >= path,
        nodes.c.path < end,
    )  # for the index; `path-x` lies between and is left out by `here`
    query = select(nodes.c.id, nodes.c.path, counted.label("held")).where(*bounds, begin, here, counted > keep)
    return [(row.id, row.path, row.held) for row in connection.execute(query.order_by(nodes.c.path).limit(limit))]


def expendable_at(connection: Connection, node_ids: list[int], *, keep: int, limit: int) -> list[tuple[int, int, int]]:
    """Return the node's key, the number and the size of each version at nodes that retention may delete, in order."""
    newest = versions.alias("newest")
    kept_from = (
        select(newest.c.number)
        .where(newest.c.node_id == nodes.c.id)
        .order_by(newest.c.number.desc())
        .limit(1)
        .offset(keep - 1)
        .scalar_subquery()
    )
    query = (
        select(versions.c.node_id, versions.c.number, versions.c.size)
        .join_from(nodes, versions, (versions.c.node_id == nodes.c.id) & (versions.c.number < kept_from))
        .where(
            nodes.c.id.in_(node_ids),
            versions.c.number != func.coalesce(head_of(nodes.c.id), 0),
            *_is_unused(versions.c.id),
        )
        .order_by(versions.c.node_id, versions.c.number)
        .limit(limit)
    )
    return [(row.node_id, row.number, row.size) for row in connection.execute(query)]


def _is_unused(version_id: ColumnElement[int]) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Match a version that no alias and no pin names."""
    pinned = versions.alias("pinned")
    return (
        ~select(aliases.c.name).where(aliases.c.version_id == version_id).exists(),
        ~select(pinned.c.id).where(pinned.c.pin_id == version_id).exists(),
    )


def _select_newest_first(node_id: int) -> Select[Any]:
    return _TOMBSTONE.where(tombstones.c.node_id == node_id).order_by(tombstones.c.number.desc())


def _read(connection: Connection, query: Select[Any]) -> list[TombstoneRow]:
    return [TombstoneRow(**row._asdict()) for row in connection.execute(query)]
