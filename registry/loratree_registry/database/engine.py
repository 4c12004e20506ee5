"""Opens the database, its transactions and its schema; a failure is one sentence."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError

from loratree_migrations import HEAD, current
from loratree_migrations import upgrade as migrate
from loratree_registry.core.text import without_secrets
from loratree_registry.database.tables import metadata
from loratree_registry.errors import Conflict, Invalid, LoratreeError, Unavailable

LOCK_TIMEOUT_S = 30
_PRAGMAS = (
    "foreign_keys = ON",
    "synchronous = FULL",  # NORMAL can lose the last commits at a power cut
    "cache_size = -65536",  # KiB; SQLite's own 2 MiB do not hold the upper pages of a million nodes' indexes
)
_REMEDIES = {  # what a database says → what to do
    "locked": "another process is writing, try again",
    "lock timeout": "another process is writing, try again",
    "deadlock": "another process was writing, try again",
    "readonly": "make the file and its folder writable",
    "read-only": "ask the primary server, or make the database writable",
    "full": "free some space, nothing was changed",
    "no space": "free some space, nothing was changed",
    "disk i/o error": "free some space, or check the disk",  # SQLite says so where its log does not fit either
    "not a database": "name another file, or restore this one",
    "malformed": "restore it from a backup",
    "unable to open": "check that its folder exists and can be written to",
}


def open_engine(address: str | Path) -> Engine:
    """An engine for `sqlite:///FILE`, its file alone, or `postgresql://…`. Raises Invalid, Unavailable.

    Connects to nothing yet.
    """
    url = URL.create("sqlite", database=str(address)) if isinstance(address, Path) else _parsed(address)
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    try:
        return _postgresql(url)
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"the database {_shown(url)} needs {error.name}, which is not installed: pip install 'loratree[postgres]'"
        ) from error


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that sees one moment of the database, and changes nothing. Raises Unavailable."""
    options: dict[str, Any] = {}
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with _answering(engine), engine.connect() as connection:
        yield connection.execution_options(**options)


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is committed at the end, or rolled back whole. Raises Unavailable, Conflict."""
    with _answering(engine), engine.execution_options(immediate=True).begin() as connection:
        yield connection


@contextmanager
def trying(engine: Engine) -> Iterator[Connection]:
    """A transaction that is rolled back in the end, whatever it wrote. Raises Unavailable, Conflict."""
    with _answering(engine), engine.execution_options(immediate=True).connect() as connection:
        yield connection


def prepare(engine: Engine) -> None:
    """Migrates SQLite by itself; raises Unavailable where a PostgreSQL schema is not at this release's."""
    with reading(engine) as connection:
        revision = current(connection)
    if revision == HEAD:
        return
    if engine.dialect.name != "sqlite" and (revision is None or revision < HEAD):
        raise Unavailable(
            f"the database {_shown(engine.url)} is at schema {revision or 'none'}, expected {HEAD}: "
            "run `loratree db upgrade`"
        )
    _upgrade(engine)


def upgrade_database(address: str | Path) -> str:
    """Brings the database at an address to this release's schema, one caller at a time; returns the revision."""
    engine = open_engine(address)
    try:
        _upgrade(engine)
    finally:
        engine.dispose()
    return HEAD


def _upgrade(engine: Engine) -> None:
    with writing(engine) as connection:
        revision = current(connection)
        if revision is not None and revision > HEAD:
            raise Unavailable(
                f"the database {_shown(engine.url)} is at schema {revision}, and this loratree knows {HEAD} at most: "
                "install a newer loratree"
            )
        migrate(connection, metadata)


def _parsed(address: str) -> URL:
    remedy = "expected sqlite:///FILE or postgresql://USER@HOST/NAME in LORATREE_DATABASE"
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:
        raise Invalid(f"the database's address cannot be read: {remedy}") from error  # it may hold a password
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    in_file = url.drivername == "sqlite" and url.database not in (None, "", ":memory:")
    if in_file or url.drivername == "postgresql+psycopg":
        return url
    raise Invalid(f"the database {_shown(url)} is of a kind that is not supported: {remedy}")


def _postgresql(url: URL) -> Engine:
    # Said for every transaction, whatever the server's default is: one that has waited for a node's lock has to see
    # what the holder wrote.
    engine = create_engine(
        url,
        pool_pre_ping=True,
        pool_size=16,
        isolation_level="READ COMMITTED",
        connect_args={"connect_timeout": 10},
    )
    event.listen(engine, "connect", _bound_waits)
    return engine


def _bound_waits(connection: Any, _record: Any) -> None:
    """By itself PostgreSQL waits for another transaction's locks for ever."""
    connection.execute(f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'")
    connection.commit()


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})
    event.listen(engine, "do_connect", _create_private)
    event.listen(engine, "connect", _settle)
    event.listen(engine, "begin", _begin)
    return engine


def _create_private(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    """Creates the file for its owner alone, whatever its folder allows; SQLite gives its log the same mode."""
    if "uri" not in options:
        with suppress(OSError):  # it is there, or SQLite says why it cannot be: opening it would drop SQLite's locks
            os.close(os.open(arguments[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _settle(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins nothing by itself
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        connection.execute("PRAGMA journal_mode = WAL")


def _begin(connection: Connection) -> None:
    """Takes the write lock at once where a write is meant: a read turned write fails under others' writes."""
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def _answering(engine: Engine) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise Conflict("another writer changed the same thing at the same time: try again") from error
    except DataError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        raise Invalid(f"the request holds what the database cannot ({reason}): take that out") from error
    except SQLAlchemyError as error:
        raise _sentence(engine.url, error) from error


def _sentence(url: URL, error: SQLAlchemyError) -> LoratreeError:
    reason = str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
    remedy = next((text for mark, text in _REMEDIES.items() if mark in reason.lower()), "check that it is running")
    return Unavailable(f"the database {_shown(url)} does not answer ({reason}): {remedy}")


def _shown(url: URL) -> str:
    return without_secrets(url.render_as_string(hide_password=True))
