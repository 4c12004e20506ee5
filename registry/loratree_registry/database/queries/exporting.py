"""Queries that stream the rows of an export, with one page in memory at a time.

Versions and events come in the order of publishing, all other rows by path. A version above the exported path belongs
to the export only if an exported version was trained on it.
"""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, select

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.paths import ancestors_of, base_of
from loratree_registry.database.queries.bases import files_of_base
from loratree_registry.database.queries.verifying import PAGE, at_or_below
from loratree_registry.database.queries.versions import files_of
from loratree_registry.database.rows import BlobRow
from loratree_registry.database.tables import (
    aliases,
    base_files,
    bases,
    blobs,
    events,
    nodes,
    tombstones,
    version_files,
    versions,
)

_pins, _pin_nodes = versions.alias("pins"), nodes.alias("pin_nodes")


def stream_bases(connection: Connection, path: str | None) -> Iterator[tuple[Row[Any], list[FileDigest]]]:
    """Yield the bases, or only the base of `path`, one by one, with their manifests and the files of their weights."""
    names = select(bases.c.name).order_by(bases.c.name)
    for name in connection.scalars(names if path is None else names.where(bases.c.name == base_of(path))).all():
        row = connection.execute(select(bases).where(bases.c.name == name)).one()
        yield row, files_of_base(connection, row.id)


def stream_nodes(connection: Connection, path: str | None) -> Iterator[Row[Any]]:
    """Yield the nodes by path, parents first."""
    query = select(nodes.c.path, nodes.c.level, nodes.c.last_number, nodes.c.created_at).order_by(nodes.c.path)
    if path is not None:
        query = query.where(at_or_below(path) | nodes.c.path.in_(ancestors_of(path)))
    return _stream(connection, query)


def stream_versions(connection: Connection, path: str | None) -> Iterator[tuple[Row[Any], list[FileDigest]]]:
    """Yield the versions and their files in the order of publishing, so that a pin comes before its dependents."""
    query = (
        select(
            versions,
            nodes.c.path,
            bases.c.digest.label("base_digest"),
            _pin_nodes.c.path.label("pin_path"),
            _pins.c.number.label("pin_number"),
            _pins.c.digest.label("pin_digest"),
        )
        .join_from(versions, nodes, versions.c.node_id == nodes.c.id)
        .join(bases, nodes.c.base_id == bases.c.id)
        .outerjoin(_pins, versions.c.pin_id == _pins.c.id)
        .outerjoin(_pin_nodes, _pins.c.node_id == _pin_nodes.c.id)
        .order_by(versions.c.id)
    )
    for rows in connection.execution_options(yield_per=PAGE).execute(_limit_to(query, path)).partitions():
        files = files_of(connection, [row.id for row in rows])
        yield from ((row, files[row.id]) for row in rows)


def stream_tombstones(connection: Connection, path: str | None) -> Iterator[Row[Any]]:
    """Yield the tombstones of deleted versions by path and number."""
    columns = (column for column in tombstones.c if column.name != "node_id")
    query = select(nodes.c.path, *columns).join_from(tombstones, nodes)
    query = query.order_by(nodes.c.path, tombstones.c.number)
    here = query if path is None else query.where(at_or_below(path))
    return _stream(connection, here)


def stream_aliases(connection: Connection, path: str | None) -> Iterator[Row[Any]]:
    """Yield the aliases of the exported versions by path and name."""
    query = (
        select(nodes.c.path, aliases.c.name, versions.c.number, aliases.c.updated_at)
        .join_from(aliases, versions, aliases.c.version_id == versions.c.id)
        .join(nodes, versions.c.node_id == nodes.c.id)
        .order_by(nodes.c.path, aliases.c.name)
    )
    return _stream(connection, _limit_to(query, path))


def stream_events(connection: Connection, path: str | None) -> Iterator[Row[Any]]:
    """Yield the events at the nodes of the subtree, oldest first."""
    query = select(nodes.c.path, events.c.kind, events.c.detail, events.c.created_at).join_from(events, nodes)
    here = query if path is None else query.where(at_or_below(path))
    return _stream(connection, here.order_by(events.c.id))


def stream_blobs(connection: Connection, path: str | None) -> Iterator[tuple[BlobRow, str]]:
    """Yield the blobs that the exported versions and bases need, by digest, each with its state."""
    of_versions = _limit_to(
        select(version_files.c.sha256)
        .join_from(nodes, versions, versions.c.node_id == nodes.c.id)
        .join(version_files, version_files.c.version_id == versions.c.id),
        path,
    )
    of_bases = select(base_files.c.sha256).join(bases)
    needed = of_versions.union_all(
        of_bases if path is None else of_bases.where(bases.c.name == base_of(path))
    ).subquery()
    query = select(blobs.c.sha256, blobs.c.size, blobs.c.state).where(blobs.c.sha256.in_(select(needed.c.sha256)))
    return ((BlobRow(row.sha256, row.size), row.state) for row in _stream(connection, query.order_by(blobs.c.sha256)))


def _limit_to(query: Select[Any], path: str | None) -> Select[Any]:
    return query if path is None else query.where(at_or_below(path) | _is_pinned(path))


def _is_pinned(path: str) -> ColumnElement[bool]:
    """Match the versions in the pinned chain of a version at `path` or below."""
    pinned = (
        select(versions.c.pin_id)
        .join_from(nodes, versions, versions.c.node_id == nodes.c.id)
        .where(at_or_below(path), versions.c.pin_id.is_not(None))
        .cte("pinned", recursive=True)
    )
    further = versions.alias()
    up = select(further.c.pin_id).where(further.c.id == pinned.c.pin_id, further.c.pin_id.is_not(None))
    return versions.c.id.in_(select(pinned.union(up).c.pin_id))


def _stream(connection: Connection, query: Select[Any]) -> Iterator[Row[Any]]:
    return iter(connection.execution_options(yield_per=PAGE).execute(query))
