"""The database's migrations. Alembic runs them from the installed package, without an alembic.ini.

The caller passes a connection inside a transaction, and the metadata: this package imports no other loratree package.
"""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, MetaData, inspect, text

HEAD: Final = "0005"
_TABLE = "alembic_version"
_LOCK = 0x6C6F7261_74726565  # "loratree" in ASCII: the key of PostgreSQL's advisory lock


def current(connection: Connection) -> str | None:
    """Return the revision of the database, or None if it has no schema yet. Imports no alembic."""
    if not inspect(connection).has_table(_TABLE):
        return None
    revision = connection.execute(text(f"SELECT version_num FROM {_TABLE}")).scalar()  # noqa: S608 - a constant
    return None if revision is None else str(revision)


def upgrade(connection: Connection, metadata: MetaData) -> None:
    """Upgrade the database to HEAD in the caller's transaction, one caller at a time. Do nothing if it is at HEAD.

    PostgreSQL holds an advisory lock for the transaction; on SQLite the transaction must begin with BEGIN IMMEDIATE.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    if current(connection) == HEAD:
        return
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection, "metadata": metadata})
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    command.upgrade(config, "head")
