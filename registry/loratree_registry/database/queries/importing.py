"""Queries of an import: what is there of some thousand rows at once, and the rows that are added."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, tuple_, update

from loratree_registry.core.paths import Level, ancestors_of
from loratree_registry.database.queries.many_rows import Row, insert_many, new_keys
from loratree_registry.database.tables import (
    aliases,
    base_files,
    bases,
    event_views,
    events,
    nodes,
    tombstones,
    version_files,
    versions,
)

Key = tuple[str, int]  # a path and a number


@dataclass(frozen=True, slots=True)
class KeptNode:
    """A node that is there."""

    id: int
    base_id: int
    level: Level
    last_number: int


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A version that is there."""

    id: int
    digest: str
    withdrawn: bool
    quarantined: bool


def last_node(connection: Connection) -> int:
    """The key of the newest node."""
    return connection.scalar(select(func.coalesce(func.max(nodes.c.id), 0))) or 0


def kept_nodes(connection: Connection, paths: Iterable[str]) -> dict[str, KeptNode]:
    """Those of some nodes that are there."""
    query = select(nodes.c.path, nodes.c.id, nodes.c.base_id, nodes.c.level, nodes.c.last_number)
    rows = connection.execute(query.where(nodes.c.path.in_(sorted(set(paths)))))
    return {row.path: KeptNode(row.id, row.base_id, row.level, row.last_number) for row in rows}


def lock_nodes(connection: Connection, paths: Iterable[str]) -> None:
    """Holds the rows of those of some nodes that are there until the transaction ends, taken in the order of paths."""
    query = select(nodes.c.id).where(nodes.c.path.in_(sorted(set(paths)))).order_by(nodes.c.path)
    connection.execute(query.with_for_update(key_share=True)).all()


def kept_versions(connection: Connection, keys: Iterable[Key]) -> dict[Key, KeptVersion]:
    """Those of some versions that are there."""
    query = (
        select(
            nodes.c.path,
            versions.c.number,
            versions.c.id,
            versions.c.digest,
            versions.c.withdrawn_at.is_not(None).label("withdrawn"),
            versions.c.quarantined_at.is_not(None).label("quarantined"),
        )
        .join_from(versions, nodes, versions.c.node_id == nodes.c.id)
        .where(_among(versions.c.number, keys))
    )
    return {
        (row.path, row.number): KeptVersion(row.id, row.digest, row.withdrawn, row.quarantined)
        for row in connection.execute(query)
    }


def numbers_of(connection: Connection, digests: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The numbers of those of some versions, each a path and a digest, that are there."""
    query = (
        select(nodes.c.path, versions.c.digest, versions.c.number)
        .join_from(versions, nodes, versions.c.node_id == nodes.c.id)
        .where(_among(versions.c.digest, digests))
    )
    return {(row.path, row.digest): row.number for row in connection.execute(query)}


def highest_numbers(connection: Connection, paths: Iterable[str]) -> dict[str, int]:
    """The highest number of a version or a tombstone at those of some nodes that have one."""
    found: dict[str, int] = {}
    for table in (versions, tombstones):
        query = select(nodes.c.path, func.max(table.c.number).label("number")).join_from(
            table, nodes, table.c.node_id == nodes.c.id
        )
        for row in connection.execute(query.where(nodes.c.path.in_(sorted(paths))).group_by(nodes.c.path)):
            found[row.path] = max(row.number, found.get(row.path, 0))
    return found


def kept_tombstones(connection: Connection, keys: Iterable[Key]) -> dict[Key, str]:
    """The digests of those of some deleted versions whose tombstones are there."""
    query = (
        select(nodes.c.path, tombstones.c.number, tombstones.c.digest)
        .join_from(tombstones, nodes)
        .where(_among(tombstones.c.number, keys))
    )
    return {(row.path, row.number): row.digest for row in connection.execute(query)}


def quarantined(connection: Connection, contents: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Those of some contents, each a path and a digest, that a version there holds or held which is quarantined."""
    wanted = set(contents)
    queries = (
        select(nodes.c.path, table.c.content)
        .join_from(table, nodes, table.c.node_id == nodes.c.id)
        .where(_among(table.c.content, wanted), table.c.quarantined_reason.is_not(None))
        for table in (versions, tombstones)
    )
    return {(row.path, row.content) for query in queries for row in connection.execute(query)}


def kept_aliases(connection: Connection, names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The numbers that those of some aliases, each a path and a name, are at that are set."""
    query = (
        select(nodes.c.path, aliases.c.name, versions.c.number)
        .join_from(aliases, versions, aliases.c.version_id == versions.c.id)
        .join(nodes, versions.c.node_id == nodes.c.id)
        .where(_among(aliases.c.name, names))
    )
    return {(row.path, row.name): row.number for row in connection.execute(query)}


def _among(column: ColumnElement[Any], keys: Iterable[tuple[str, Any]]) -> ColumnElement[bool]:
    """The rows at some nodes that have one of some values, each a path and a value.

    Each side by itself too, which indexes take: SQLite reads a whole table for a list of pairs.
    """
    wanted = sorted(set(keys))
    paths, values = {path for path, _ in wanted}, {value for _, value in wanted}
    return nodes.c.path.in_(sorted(paths)) & column.in_(sorted(values)) & tuple_(nodes.c.path, column).in_(wanted)


def has_weights(connection: Connection, base_id: int) -> bool:
    """Tells whether a base's weights are stored."""
    return (
        connection.execute(select(base_files.c.name).where(base_files.c.base_id == base_id).limit(1)).first()
        is not None
    )


def insert_weights(connection: Connection, rows: Sequence[Row]) -> None:
    """Inserts the files of bases' weights, whose bytes are stored."""
    insert_many(connection, base_files, rows)


def insert_base(connection: Connection, values: Row) -> int:
    """Inserts a base."""
    key: int = connection.execute(bases.insert().values(values).returning(bases.c.id)).scalar_one()
    return key


def insert_nodes(connection: Connection, rows: Sequence[Row]) -> None:
    """Inserts nodes, whose keys are new ones."""
    insert_many(connection, nodes, rows)


def raise_last_number(connection: Connection, node_id: int, number: int) -> None:
    """Has a node give out no number up to this one again."""
    lower = (nodes.c.id == node_id) & (nodes.c.last_number < number)
    connection.execute(update(nodes).where(lower).values(last_number=number))


def insert_versions(connection: Connection, rows: Sequence[Row], files: Sequence[Row]) -> None:
    """Inserts versions, whose keys are new ones, and their files."""
    insert_many(connection, versions, rows)
    insert_many(connection, version_files, files)


def insert_tombstones(connection: Connection, rows: Sequence[Row]) -> None:
    """Inserts tombstones."""
    insert_many(connection, tombstones, rows)


def insert_aliases(connection: Connection, rows: Sequence[Row]) -> None:
    """Inserts aliases that are not set."""
    insert_many(connection, aliases, rows)


def insert_events(connection: Connection, found: Sequence[tuple[str, Row]]) -> None:
    """Inserts events, each of a path, in their order, seen from all nodes above."""
    ids = kept_nodes(connection, {above for path, _ in found for above in (path, *ancestors_of(path))})
    keyed = list(zip(new_keys(connection, events, len(found)), found, strict=True))
    insert_many(connection, events, [{"id": key, "node_id": ids[path].id, **row} for key, (path, row) in keyed])
    seen = [
        {"node_id": ids[above].id, "event_id": key} for key, (path, _) in keyed for above in (path, *ancestors_of(path))
    ]
    insert_many(connection, event_views, seen)


def node_keys(connection: Connection, count: int) -> Sequence[int]:
    """Keys for new nodes."""
    return new_keys(connection, nodes, count)


def version_keys(connection: Connection, count: int) -> Sequence[int]:
    """Keys for new versions."""
    return new_keys(connection, versions, count)
