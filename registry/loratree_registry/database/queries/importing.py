"""Queries of an import, which look up or insert thousands of rows at a time."""

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
    """A node that exists."""

    id: int
    base_id: int
    level: Level
    last_number: int


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A version that exists."""

    id: int
    digest: str
    withdrawn: bool
    quarantined: bool


def last_node(connection: Connection) -> int:
    """Return the key of the newest node, or 0 if there is none."""
    return connection.scalar(select(func.coalesce(func.max(nodes.c.id), 0))) or 0


def last_version(connection: Connection) -> int:
    """Return the key of the newest version, or 0 if there is none."""
    return connection.scalar(select(func.coalesce(func.max(versions.c.id), 0))) or 0


def kept_nodes(connection: Connection, paths: Iterable[str]) -> dict[str, KeptNode]:
    """Return the nodes among `paths` that exist, by path."""
    query = select(nodes.c.path, nodes.c.id, nodes.c.base_id, nodes.c.level, nodes.c.last_number)
    rows = connection.execute(query.where(nodes.c.path.in_(sorted(set(paths)))))
    return {row.path: KeptNode(row.id, row.base_id, row.level, row.last_number) for row in rows}


def lock_nodes(connection: Connection, paths: Iterable[str]) -> None:
    """Lock the existing nodes among `paths` until the transaction ends, in path order to avoid a deadlock."""
    query = select(nodes.c.id).where(nodes.c.path.in_(sorted(set(paths)))).order_by(nodes.c.path)
    connection.execute(query.with_for_update(key_share=True)).all()


def kept_versions(connection: Connection, keys: Iterable[Key]) -> dict[Key, KeptVersion]:
    """Return the versions among `keys` that exist, by key."""
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
        .where(_is_among(versions.c.number, keys))
    )
    return {
        (row.path, row.number): KeptVersion(row.id, row.digest, row.withdrawn, row.quarantined)
        for row in connection.execute(query)
    }


def numbers_of(connection: Connection, digests: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return the numbers of the existing versions among `digests`, each a path and a digest."""
    query = (
        select(nodes.c.path, versions.c.digest, versions.c.number)
        .join_from(versions, nodes, versions.c.node_id == nodes.c.id)
        .where(_is_among(versions.c.digest, digests))
    )
    return {(row.path, row.digest): row.number for row in connection.execute(query)}


def highest_numbers(connection: Connection, paths: Iterable[str]) -> dict[str, int]:
    """Return the highest number of a version or tombstone at each node among `paths` that has one."""
    highest: dict[str, int] = {}
    for table in (versions, tombstones):
        query = select(nodes.c.path, func.max(table.c.number).label("number")).join_from(
            table, nodes, table.c.node_id == nodes.c.id
        )
        for row in connection.execute(query.where(nodes.c.path.in_(sorted(paths))).group_by(nodes.c.path)):
            highest[row.path] = max(row.number, highest.get(row.path, 0))
    return highest


def kept_tombstones(connection: Connection, keys: Iterable[Key]) -> dict[Key, str]:
    """Return the digests of the tombstones that exist among `keys`, by key."""
    query = (
        select(nodes.c.path, tombstones.c.number, tombstones.c.digest)
        .join_from(tombstones, nodes)
        .where(_is_among(tombstones.c.number, keys))
    )
    return {(row.path, row.number): row.digest for row in connection.execute(query)}


def quarantined(connection: Connection, contents: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the pairs among `contents`, each a path and a content digest, that a quarantined version has or had."""
    wanted = set(contents)
    queries = (
        select(nodes.c.path, table.c.content)
        .join_from(table, nodes, table.c.node_id == nodes.c.id)
        .where(_is_among(table.c.content, wanted), table.c.quarantined_reason.is_not(None))
        for table in (versions, tombstones)
    )
    return {(row.path, row.content) for query in queries for row in connection.execute(query)}


def quarantined_bytes(connection: Connection, digests: Iterable[str], *, newest: int) -> dict[str, tuple[str, str]]:
    """Return a quarantined version for each of `digests`, of files, that one holds: its ref and the reason.

    Versions with a key above `newest` are left out.
    """
    query = (
        select(version_files.c.sha256, nodes.c.path, versions.c.number, versions.c.quarantined_reason)
        .join_from(version_files, versions, version_files.c.version_id == versions.c.id)
        .join(nodes, versions.c.node_id == nodes.c.id)
        .where(
            version_files.c.sha256.in_(sorted(set(digests))),
            versions.c.quarantined_at.is_not(None),
            versions.c.id <= newest,
        )
        .order_by(versions.c.id.desc())
    )
    return {row.sha256: (f"{row.path}@{row.number}", row.quarantined_reason) for row in connection.execute(query)}


def kept_aliases(connection: Connection, names: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return the version numbers of the aliases among `names`, each a path and a name, that are set."""
    query = (
        select(nodes.c.path, aliases.c.name, versions.c.number)
        .join_from(aliases, versions, aliases.c.version_id == versions.c.id)
        .join(nodes, versions.c.node_id == nodes.c.id)
        .where(_is_among(aliases.c.name, names))
    )
    return {(row.path, row.name): row.number for row in connection.execute(query)}


def _is_among(column: ColumnElement[Any], keys: Iterable[tuple[str, Any]]) -> ColumnElement[bool]:
    """Match the rows for which the node's path and the value of `column` form a pair in `keys`.

    The paths and the values are also listed alone, for the indexes: SQLite reads a whole table for a list of pairs.
    """
    wanted = sorted(set(keys))
    paths, values = {path for path, _ in wanted}, {value for _, value in wanted}
    return nodes.c.path.in_(sorted(paths)) & column.in_(sorted(values)) & tuple_(nodes.c.path, column).in_(wanted)


def has_weights(connection: Connection, base_id: int) -> bool:
    """Return whether a base's weights are stored."""
    return (
        connection.execute(select(base_files.c.name).where(base_files.c.base_id == base_id).limit(1)).first()
        is not None
    )


def insert_weights(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert the files of bases' weights; their blobs must be stored already."""
    insert_many(connection, base_files, rows)


def insert_base(connection: Connection, values: Row) -> int:
    """Insert a base and return its key."""
    key: int = connection.execute(bases.insert().values(values).returning(bases.c.id)).scalar_one()
    return key


def insert_nodes(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert nodes with keys from `node_keys`."""
    insert_many(connection, nodes, rows)


def raise_last_number(connection: Connection, node_id: int, number: int) -> None:
    """Raise a node's last number to `number`, so that the node gives out only higher numbers from now on."""
    lower = (nodes.c.id == node_id) & (nodes.c.last_number < number)
    connection.execute(update(nodes).where(lower).values(last_number=number))


def insert_versions(connection: Connection, rows: Sequence[Row], files: Sequence[Row]) -> None:
    """Insert versions with keys from `version_keys`, and their files."""
    insert_many(connection, versions, rows)
    insert_many(connection, version_files, files)


def insert_tombstones(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert tombstones."""
    insert_many(connection, tombstones, rows)


def insert_aliases(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert aliases that are not set."""
    insert_many(connection, aliases, rows)


def insert_events(connection: Connection, by_path: Sequence[tuple[str, Row]]) -> None:
    """Insert events, each with its path, in the given order; every node above shows them too."""
    ids = kept_nodes(connection, {above for path, _ in by_path for above in (path, *ancestors_of(path))})
    keyed = list(zip(new_keys(connection, events, len(by_path)), by_path, strict=True))
    insert_many(connection, events, [{"id": key, "node_id": ids[path].id, **row} for key, (path, row) in keyed])
    seen = [
        {"node_id": ids[above].id, "event_id": key} for key, (path, _) in keyed for above in (path, *ancestors_of(path))
    ]
    insert_many(connection, event_views, seen)


def node_keys(connection: Connection, count: int) -> Sequence[int]:
    """Return keys for new nodes."""
    return new_keys(connection, nodes, count)


def version_keys(connection: Connection, count: int) -> Sequence[int]:
    """Return keys for new versions."""
    return new_keys(connection, versions, count)
