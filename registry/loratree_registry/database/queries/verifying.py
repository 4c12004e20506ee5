"""Queries of a full check: the blobs that must be stored, the versions and bases that use them, contradictory rows."""

from collections.abc import Iterator

from sqlalchemy import ColumnElement, Connection, Select, func, select, tuple_

from loratree_registry.core.paths import descendant_range
from loratree_registry.database.rows import BlobRow
from loratree_registry.database.tables import (
    aliases,
    base_files,
    bases,
    blobs,
    nodes,
    tombstones,
    version_files,
    versions,
)

PAGE = 1000
_STORED = select(blobs.c.sha256, blobs.c.size).where(blobs.c.state == "stored").order_by(blobs.c.sha256)


def stream_stored(connection: Connection, path: str | None) -> Iterator[BlobRow]:
    """Yield the blobs recorded as stored, by digest: all, or only the blobs of versions and bases at `path` or below.

    Memory holds one page of them at a time.
    """
    query = _STORED if path is None else _STORED.where(blobs.c.sha256.in_(_select_digests(path)))
    for row in connection.execution_options(yield_per=PAGE).execute(query):
        yield BlobRow(row.sha256, row.size)


def find_stored(connection: Connection, digests: list[str]) -> list[BlobRow]:
    """Return the blobs among `digests` that are recorded as stored, by digest."""
    return [BlobRow(row.sha256, row.size) for row in connection.execute(_STORED.where(blobs.c.sha256.in_(digests)))]


def count_users(connection: Connection, sha256: str) -> int:
    """Count the versions that have a file with these bytes."""
    here = version_files.c.sha256 == sha256
    return connection.scalar(select(func.count(version_files.c.version_id.distinct())).where(here)) or 0


def list_users(connection: Connection, sha256: str, *, limit: int) -> list[str]:
    """Return the first versions that have a file with these bytes, as PATH@NUMBER."""
    query = (
        select(nodes.c.path, versions.c.number)
        .distinct()
        .join_from(version_files, versions, version_files.c.version_id == versions.c.id)
        .join(nodes, versions.c.node_id == nodes.c.id)
        .where(version_files.c.sha256 == sha256)
        .order_by(nodes.c.path, versions.c.number)
        .limit(limit)
    )
    return [f"{row.path}@{row.number}" for row in connection.execute(query)]


def bases_with(connection: Connection, sha256: str) -> list[str]:
    """Return the names of the bases that have these bytes in their stored weights."""
    query = select(bases.c.name).distinct().join(base_files).where(base_files.c.sha256 == sha256)
    return list(connection.scalars(query.order_by(bases.c.name)))


def contradictions(connection: Connection, path: str | None, *, limit: int) -> list[str]:
    """Return a clause for each row at `path` or below that the registry can never write; at most `limit` of a kind."""
    clauses = []
    for query, clause in _CONTRADICTIONS:
        here = query if path is None else query.where(at_or_below(path))
        clauses += [clause.format(**row._asdict()) for row in connection.execute(here.limit(limit))]
    return clauses


def at_or_below(path: str) -> ColumnElement[bool]:
    """Match the nodes of a subtree, by their paths."""
    first, end = descendant_range(path)
    return (nodes.c.path == path) | ((nodes.c.path >= first) & (nodes.c.path < end))


def _select_digests(path: str) -> Select[tuple[str]]:
    of_versions = (
        select(version_files.c.sha256)
        .join_from(nodes, versions, versions.c.node_id == nodes.c.id)
        .join(version_files, version_files.c.version_id == versions.c.id)
        .where(at_or_below(path))
    )
    of_base = select(base_files.c.sha256).join(bases).where(bases.c.name == path)
    both = of_versions.union_all(of_base).subquery()
    return select(both.c.sha256)


_parents, _pins, _pin_nodes = nodes.alias("parents"), versions.alias("pins"), nodes.alias("pin_nodes")
_AT = select(nodes.c.path, versions.c.number).join_from(nodes, versions, versions.c.node_id == nodes.c.id)
_same_number = (tombstones.c.node_id == versions.c.node_id) & (tombstones.c.number == versions.c.number)
# Each kind of contradiction that the constraints of the schema cannot prevent.
_CONTRADICTIONS = (
    (
        select(nodes.c.path, _parents.c.path.label("parent"))
        .join_from(nodes, _parents, nodes.c.parent_id == _parents.c.id)
        .where(func.substr(nodes.c.path, 1, func.length(_parents.c.path) + 1) != _parents.c.path + "/"),
        "the node {path} has the parent {parent}, which is not above it",
    ),
    (
        _AT.where(versions.c.number > nodes.c.last_number),
        "{path}@{number} has a number that its node has not given out yet",
    ),
    (
        select(nodes.c.path, tombstones.c.number)
        .join_from(tombstones, nodes)
        .where(tombstones.c.number > nodes.c.last_number),
        "the tombstone {path}@{number} has a number that its node has not given out yet",
    ),
    (_AT.join(tombstones, _same_number), "{path}@{number} was deleted and is still there"),
    (
        _AT.join(_pins, versions.c.pin_id == _pins.c.id)
        .join(_pin_nodes, _pins.c.node_id == _pin_nodes.c.id)
        .add_columns(_pin_nodes.c.path.label("pin"), _pins.c.number.label("pin_number"))
        .where(func.substr(nodes.c.path, 1, func.length(_pin_nodes.c.path) + 1) != _pin_nodes.c.path + "/"),
        "{path}@{number} is pinned to {pin}@{pin_number}, which is not above it",
    ),
    (
        _AT.join(aliases, aliases.c.version_id == versions.c.id)
        .add_columns(aliases.c.name)
        .where(versions.c.withdrawn_at.is_not(None)),
        "the alias {path}@{name} names version {number}, which is withdrawn",
    ),
    (
        _AT.join(version_files, version_files.c.version_id == versions.c.id)
        .join(blobs, version_files.c.sha256 == blobs.c.sha256)
        .add_columns(blobs.c.sha256, blobs.c.state)
        .where(tuple_(blobs.c.state, blobs.c.size) != tuple_("stored", version_files.c.size)),
        "{path}@{number} needs {sha256}, which is recorded as {state} or with another size",
    ),
    (
        select(nodes.c.path, base_files.c.name, blobs.c.sha256, blobs.c.state)
        .join_from(nodes, bases, nodes.c.path == bases.c.name)
        .join(base_files, base_files.c.base_id == bases.c.id)
        .join(blobs, base_files.c.sha256 == blobs.c.sha256)
        .where(tuple_(blobs.c.state, blobs.c.size) != tuple_("stored", base_files.c.size)),
        "the base {path} needs {sha256} for {name}, which is recorded as {state} or with another size",
    ),
)
