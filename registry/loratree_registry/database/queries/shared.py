"""What several queries share."""

from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, func, select

from loratree_registry.database.tables import versions


def head_of(node: Any) -> ColumnElement[int]:
    """The highest number at a node that is not withdrawn; an index of its own ends in it."""
    counted = versions.alias()
    live = (counted.c.node_id == node) & counted.c.withdrawn_at.is_(None)
    return select(func.max(counted.c.number)).where(live).scalar_subquery()


def insert_for(connection: Connection) -> Any:
    """The database's own INSERT, which has ON CONFLICT."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]  # same methods, other class
    return insert


def insert_new(connection: Connection, table: Table, values: dict[str, Any]) -> Any:
    """Inserts a row and returns the first column of its key; None where a unique key is taken, without an error."""
    return connection.scalar(_inserted(insert_for(connection), table), values)


@cache
def _inserted(insert: Any, table: Table) -> Any:
    return insert(table).on_conflict_do_nothing().returning(next(iter(table.primary_key)))


def past(query: Select[Any], column: ColumnElement[str], after: str | None) -> Select[Any]:
    """The rows behind a key."""
    return query if after is None else query.where(column > after)
