"""A database in memory, to read a registry that nobody has begun: nothing is created for it."""

from typing import Any

from sqlalchemy import Connection, Engine, StaticPool, create_engine, event

from loratree_registry.database.json_text import serialize
from loratree_registry.database.tables import metadata


def open_empty() -> Engine:
    """Make an engine over an empty database in memory, at this release's schema."""
    options = {"check_same_thread": False}
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args=options, json_serializer=serialize)
    event.listen(engine, "connect", _leave_transactions)
    event.listen(engine, "begin", _begin)
    with engine.begin() as connection:
        metadata.create_all(connection)
    return engine


def _leave_transactions(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")
