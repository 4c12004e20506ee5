"""Parts of SQL that several queries share."""

from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, exists, func, select

from loratree_registry.database.tables import version_files, versions


def head_of(node: Any) -> ColumnElement[int]:
    """Select the highest number at a node that is not withdrawn, one read at the end of the index ix_versions_live."""
    counted = versions.alias()
    live = (counted.c.node_id == node) & counted.c.withdrawn_at.is_(None)
    return select(func.max(counted.c.number)).where(live).scalar_subquery()


def insert_for(connection: Connection) -> Any:
    """Return the database's own INSERT, which has ON CONFLICT."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]  # same methods, other class
    return insert


def insert_new(connection: Connection, table: Table, values: dict[str, Any]) -> Any:
    """Insert a row and return the first column of its key, or None, without an error, if a unique key is taken."""
    return connection.scalar(_build_insert(insert_for(connection), table), values)


@cache
def _build_insert(insert: Any, table: Table) -> Any:
    return insert(table).on_conflict_do_nothing().returning(next(iter(table.primary_key)))


def past(query: Select[Any], column: ColumnElement[str], after: str | None) -> Select[Any]:
    """Limit a query to the rows after a key."""
    return query if after is None else query.where(column > after)


def begins_with(column: ColumnElement[str], start: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Match the digests that begin with `start`, by a range, so that an index on the column is used.

    `g` is after all digits of a digest. Digests have no other letters, so every usual collation orders them as bytes.
    """
    return column >= start, column < f"{start}g"


def holds_bytes(sha256: ColumnElement[str] | str) -> ColumnElement[bool]:
    """Match the versions with a file of these bytes, for a query of quarantined versions.

    They are few, and a million versions may hold the same bytes, such as what all users start from. So the index of the
    quarantined ones is read; `|| ''` keeps a database from reading that of the files' digests.
    """
    held = (version_files.c.version_id == versions.c.id) & (version_files.c.sha256 + "" == sha256)
    return exists().where(held).correlate(versions)
