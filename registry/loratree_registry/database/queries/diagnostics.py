"""Queries about the database itself: its release, its settings, and unfinished work in it."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select, text

from loratree_registry.database.tables import blobs, metadata, nodes, uploads

_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")
_SQLITE_SYNCHRONOUS = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}


def sqlite_settings(connection: Connection) -> dict[str, str]:
    """Return SQLite's release and the settings of our connection."""
    settings = {"release": str(connection.scalar(select(func.sqlite_version())))}
    for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys"):
        settings[name] = str(connection.exec_driver_sql(f"PRAGMA {name}").scalar())
    return settings | {"synchronous": _SQLITE_SYNCHRONOUS[int(settings["synchronous"])]}


def postgresql_settings(connection: Connection) -> dict[str, str]:
    """Return PostgreSQL's release and the settings of our connection."""
    names = ("server_version", "default_transaction_isolation", "lock_timeout", "fsync", "synchronous_commit")
    return {name: str(connection.scalar(select(func.current_setting(name)))) for name in names}


def path_collation(connection: Connection) -> str | None:
    """Return the collation by which PostgreSQL orders paths, or None for the database's default."""
    query = text(
        "SELECT collname FROM pg_attribute JOIN pg_collation ON pg_collation.oid = attcollation "
        "WHERE attrelid = CAST(:table AS regclass) AND attname = :column"
    )
    collation = connection.scalar(query, {"table": nodes.name, "column": nodes.c.path.name})
    return None if collation in (None, "default") else str(collation)


def database_time(connection: Connection) -> datetime:
    """Return the present time of PostgreSQL's clock."""
    time: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return time


def missing_rights(connection: Connection) -> list[str]:
    """Return the rights on our tables that this PostgreSQL user lacks, such as `INSERT on nodes`."""
    return [
        f"{right} on {table.name}"
        for table in metadata.sorted_tables
        for right in _RIGHTS
        if not connection.scalar(select(func.has_table_privilege(table.name, right)))
    ]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """The numbers of expected blobs, condemned blobs and open uploads that nothing has used since a moment."""

    expected: int
    condemned: int
    uploads: int


def leftovers(connection: Connection, *, before: datetime) -> Leftovers:
    """Count the unfinished blobs and uploads that nothing has used since `before`."""
    rows = connection.execute(_STATES.where(blobs.c.touched_at < before))
    states: dict[str, int] = {row.state: row.number for row in rows}
    open_ = connection.scalar(select(func.count()).select_from(uploads).where(uploads.c.touched_at < before)) or 0
    return Leftovers(states.get("expected", 0), states.get("condemned", 0), open_)


_STATES = select(blobs.c.state, func.count().label("number")).where(blobs.c.state != "stored").group_by(blobs.c.state)
