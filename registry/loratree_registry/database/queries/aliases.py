"""Queries of aliases, which move by compare-and-swap."""

from sqlalchemy import ColumnElement, Connection, Integer, bindparam, func, select, update
from sqlalchemy import delete as delete_from

from loratree_registry.core.times import now
from loratree_registry.database.queries.shared import insert_new
from loratree_registry.database.rows import AliasRow
from loratree_registry.database.tables import aliases, versions

_ALIAS = select(aliases.c.node_id, aliases.c.name, versions.c.number, aliases.c.updated_at).join_from(
    aliases, versions, aliases.c.version_id == versions.c.id
)
_LISTED = (
    _ALIAS.where(aliases.c.node_id.in_(bindparam("node_ids", expanding=True)))
    .order_by(aliases.c.name)
    .limit(bindparam("limit", type_=Integer))
)
_ALL = 2**31 - 1


def insert_alias(connection: Connection, node_id: int, name: str, version_id: int) -> bool:
    """Set an alias that is not set. Return False if it is set."""
    values = {"node_id": node_id, "name": name, "version_id": version_id}
    return insert_new(connection, aliases, values) is not None


def move_alias(connection: Connection, node_id: int, name: str, version_id: int, *, expected: int) -> bool:
    """Move an alias that is at the version numbered `expected`. Return False if it is elsewhere or not set."""
    moved = update(aliases).where(_is_at(node_id, name, expected)).values(version_id=version_id, updated_at=now())
    return connection.execute(moved).rowcount == 1


def delete_alias(connection: Connection, node_id: int, name: str, *, expected: int) -> bool:
    """Delete an alias that is at the version numbered `expected`. Return False if it is elsewhere or not set."""
    return connection.execute(delete_from(aliases).where(_is_at(node_id, name, expected))).rowcount == 1


def list_aliases(connection: Connection, node_ids: list[int], *, limit: int | None = None) -> list[AliasRow]:
    """Return the aliases at nodes, by name, at most `limit`."""
    parameters = {"node_ids": node_ids, "limit": _ALL if limit is None else limit}
    return [AliasRow(**row._asdict()) for row in connection.execute(_LISTED, parameters)]


def has_alias(connection: Connection, node_id: int, name: str) -> bool:
    """Return whether an alias is set at a node."""
    query = select(aliases.c.name).where(aliases.c.node_id == node_id, aliases.c.name == name)
    return connection.scalar(query) is not None


def count_aliases(connection: Connection, node_id: int) -> int:
    """Count the aliases at a node."""
    return connection.scalar(select(func.count()).where(aliases.c.node_id == node_id)) or 0


def aliases_of(connection: Connection, version_id: int) -> list[str]:
    """Return the names of the aliases that name a version, in order."""
    query = select(aliases.c.name).where(aliases.c.version_id == version_id).order_by(aliases.c.name)
    return list(connection.scalars(query))


def _is_at(node_id: int, name: str, number: int) -> ColumnElement[bool]:
    version = select(versions.c.id).where(versions.c.node_id == node_id, versions.c.number == number)
    return (
        (aliases.c.node_id == node_id) & (aliases.c.name == name) & (aliases.c.version_id == version.scalar_subquery())
    )
