"""Queries about the database itself: what it is, how it is set, and what was left behind in it."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select, text

from loratree_registry.database.tables import blobs, metadata, nodes, uploads

_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_SQLITE_SYNCHRONOUS = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}


def sqlite_settings(connection: Connection) -> dict[str, str]:
    """SQLite's release, and what a connection of ours is set to."""
    found = {"release": str(connection.scalar(select(func.sqlite_version())))}
    for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys"):
        found[name] = str(connection.exec_driver_sql(f"PRAGMA {name}").scalar())
    return found | {"synchronous": _SQLITE_SYNCHRONOUS[int(found["synchronous"])]}


def postgresql_settings(connection: Connection) -> dict[str, str]:
    """PostgreSQL's release, and what a connection of ours is set to."""
    names = ("server_version", "default_transaction_isolation", "lock_timeout", "fsync", "synchronous_commit")
    return {name: str(connection.scalar(select(func.current_setting(name)))) for name in names}


def path_collation(connection: Connection) -> str | None:
    """The collation by which PostgreSQL orders paths; None is the database's own."""
    query = text(
        "SELECT collname FROM pg_attribute JOIN pg_collation ON pg_collation.oid = attcollation "
        "WHERE attrelid = CAST(:table AS regclass) AND attname = :column"
    )
    found = connection.scalar(query, {"table": nodes.name, "column": nodes.c.path.name})
    return None if found in (None, "default") else str(found)


def database_time(connection: Connection) -> datetime:
    """PostgreSQL's clock, now."""
    found: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return found


def missing_rights(connection: Connection) -> list[str]:
    """What PostgreSQL does not let this user do with our tables, such as `INSERT on nodes`."""
    return [
        f"{right} on {table.name}"
        for table in metadata.sorted_tables
        for right in _RIGHTS
        if not connection.scalar(select(func.has_table_privilege(table.name, right)))
    ]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """How many blobs are on their way since a moment, how many are condemned, and how many uploads are open as long."""

    expected: int
    condemned: int
    uploads: int


def leftovers(connection: Connection, *, before: datetime) -> Leftovers:
    """What was begun before a moment and never ended."""
    rows = connection.execute(_STATES.where(blobs.c.touched_at < before))
    states: dict[str, int] = {row.state: row.number for row in rows}
    open_ = connection.scalar(select(func.count()).select_from(uploads).where(uploads.c.touched_at < before)) or 0
    return Leftovers(states.get("expected", 0), states.get("condemned", 0), open_)


_STATES = select(blobs.c.state, func.count().label("number")).where(blobs.c.state != "stored").group_by(blobs.c.state)
