"""The database: its engine, its transactions and its schema. Each failure becomes an error of one sentence."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, SQLAlchemyError

from loratree_migrations import HEAD, current
from loratree_migrations import upgrade as migrate
from loratree_registry.core.text import without_secrets
from loratree_registry.database.json_text import serialize
from loratree_registry.database.postgresql import open_postgresql
from loratree_registry.database.reserve import RESERVE, STEP, free_bytes, refill, release
from loratree_registry.database.tables import metadata
from loratree_registry.errors import Conflict, Invalid, LoratreeError, Unavailable

LOCK_TIMEOUT_S = 30
_PRAGMAS = (
    "foreign_keys = ON",
    "synchronous = FULL",  # NORMAL can lose the last commits at a power cut
    "cache_size = -65536",  # in KiB; the default of 2 MiB is too small for the upper index pages of a million nodes
)
_REMEDIES = {  # a part of the database's own message → the remedy
    "locked": "another process is writing, try again",
    "lock timeout": "another process is writing, try again",
    "deadlock": "another process was writing, try again",
    "readonly": "make the file and its folder writable",
    "read-only": "ask the primary server, or make the database writable",
    "full": "free some space, nothing was changed",
    "no space": "free some space, nothing was changed",
    "disk i/o error": "free some space, or check the disk",  # SQLite's message if its log does not fit on the disk
    "not a database": "name another file, or restore this one",
    "malformed": "restore it from a backup",
    "unable to open": "check that its folder exists and can be written to",
}

_NO_ROOM = ("full", "disk i/o error", "unable to open")  # how SQLite says that a disk is full

_TURNS: "WeakKeyDictionary[Engine, Lock]" = WeakKeyDictionary()  # of the writers of each SQLite file


def open_engine(address: str | Path) -> Engine:
    """Make an engine for `sqlite:///FILE`, the path of an SQLite file, or `postgresql://…`. It does not connect yet.

    Raises Invalid, Unavailable.
    """
    url = URL.create("sqlite", database=str(address)) if isinstance(address, Path) else _parse(address)
    if url.get_backend_name() == "sqlite":
        return _open_sqlite(url)
    try:
        return open_postgresql(url, lock_timeout_s=LOCK_TIMEOUT_S)
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"the database {_mask(url)} needs {error.name}, which is not installed: pip install 'loratree[postgres]'"
        ) from error


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that sees one moment of the database and changes nothing. Raises Unavailable."""
    with _translate_errors(engine), engine.connect() as connection:
        if engine.dialect.name != "postgresql":
            yield connection
            return
        connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        try:
            yield connection
        except LoratreeError:
            connection.commit()
            raise
        # A rollback would make the driver forget its prepared statements, and PostgreSQL plan each query anew: that
        # takes four times as long as running it.
        connection.commit()


@contextmanager
def asking(engine: Engine) -> Iterator[Connection]:
    """Open a connection for one query, which sees one moment by itself. Raises Unavailable.

    A server is spared the two round trips that begin and end a transaction.
    """
    if engine.dialect.name != "postgresql":
        with reading(engine) as connection:
            yield connection
        return
    with _translate_errors(engine), engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT")


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that commits at the end, or rolls back on an error. Raises Unavailable, Conflict."""
    with _to_write(engine) as connection, connection.begin():
        yield connection


@contextmanager
def freeing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction as `writing` does, for what leads to free space: on a full disk it may use the reserve."""
    if (file := _sqlite_file(engine.url)) is not None:
        release(file, wanted=RESERVE)
    with writing(engine) as connection:
        yield connection


@contextmanager
def trying(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that always rolls back at the end. Raises Unavailable, Conflict."""
    with _to_write(engine) as connection:
        yield connection


def prepare(engine: Engine) -> None:
    """Upgrade SQLite to this release's schema. Raises Unavailable if a PostgreSQL schema is at another revision."""
    with reading(engine) as connection:
        revision = current(connection)
    if revision == HEAD:
        return
    if engine.dialect.name != "sqlite" and (revision is None or revision < HEAD):
        raise Unavailable(
            f"the database {_mask(engine.url)} is at schema {revision or 'none'}, expected {HEAD}: "
            "run `loratree db upgrade`"
        )
    _upgrade(engine)


def upgrade_database(address: str | Path) -> str:
    """Upgrade the database at an address to this release's schema, one caller at a time, and return the revision."""
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
                f"the database {_mask(engine.url)} is at schema {revision}, and this loratree knows {HEAD} at most: "
                "install a newer loratree"
            )
        migrate(connection, metadata)


def _parse(address: str) -> URL:
    remedy = "expected sqlite:///FILE or postgresql://USER@HOST/NAME in LORATREE_DATABASE"
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        # `from None`: the address, which the error quotes, may hold a password.
        raise Invalid(f"the database's address cannot be read: {remedy}") from None
    if "@" in (url.host or ""):
        raise Invalid("the database's address has an @ in its password or user: write it as %40")
    _check_host(url)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite" and url.query:
        raise Invalid(f"the database's address has a query (?…), which would be ignored: leave it out, {remedy}")
    in_file = url.drivername == "sqlite" and not url.host and url.database not in (None, "", ":memory:")
    if in_file or url.drivername == "postgresql+psycopg":
        return url
    raise Invalid(f"the database {_mask(url)} is of a kind that is not supported: {remedy}")


def _check_host(url: URL) -> None:
    """Check that the host can be a name, such as one without a part of 64 letters. Raises Invalid."""
    try:
        (url.host or "").encode("idna")
    except UnicodeError:
        raise Invalid(f"the database {_mask(url)} names a host that cannot be one: correct LORATREE_DATABASE") from None


def _open_sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S}, json_serializer=serialize)
    event.listen(engine, "do_connect", _create_private)
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin)
    event.listen(engine, "engine_disposed", _refill)
    _TURNS[engine] = Lock()
    return engine


@contextmanager
def _to_write(engine: Engine) -> Iterator[Connection]:
    with _translate_errors(engine), _in_turn(engine), engine.connect() as connection:
        yield connection.execution_options(immediate=True)


@contextmanager
def _in_turn(engine: Engine) -> Iterator[None]:
    """Let the threads of this process write to SQLite one after another.

    SQLite has one writer at a time, and makes another one sleep and ask again, longer each time. Raises Unavailable.
    """
    turn = _TURNS.get(engine)
    if turn is None:
        yield
        return
    if not turn.acquire(timeout=LOCK_TIMEOUT_S):
        raise Unavailable(f"the database {_mask(engine.url)} does not answer (it is locked): {_REMEDIES['locked']}")
    try:
        yield
    finally:
        turn.release()


def _sqlite_file(url: URL) -> Path | None:
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def _refill(engine: Engine) -> None:
    """Fill up the reserve after the last connection is closed, when SQLite's log is gone."""
    if (file := _sqlite_file(engine.url)) is not None:
        refill(file)


def _create_private(_dialect: Any, _record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    """Create the file so that only its owner can access it; SQLite gives its log the same mode."""
    if "uri" not in options:
        # Never open an existing file here: closing it would drop SQLite's locks. SQLite itself reports any error.
        with suppress(OSError):
            os.close(os.open(arguments[0], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        release(Path(arguments[0]), wanted=STEP)  # SQLite's log needs some space even to read


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    _use_wal(connection)


def _use_wal(connection: Any) -> None:
    """Turn the write-ahead log on, if it is off. SQLite itself does not wait for another process that does the same."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin(connection: Connection) -> None:
    """Take the write lock at BEGIN of a writing transaction: after a read, SQLite refuses it if others have written."""
    if connection.get_execution_options().get("immediate"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:  # past SQLAlchemy, which would take as long as for a query; this opens nothing, so it cannot fail
        connection.connection.driver_connection.execute("BEGIN")  # type: ignore[union-attr]


@contextmanager
def _translate_errors(engine: Engine) -> Iterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise Conflict("another writer changed the same thing at the same time: try again") from error
    except DataError as error:
        reason = str(error.orig).strip().partition("\n")[0]
        raise Invalid(f"the request holds a value that the database cannot store ({reason}): remove it") from error
    except SQLAlchemyError as error:
        raise _to_error(engine.url, error) from error


def _to_error(url: URL, error: SQLAlchemyError) -> LoratreeError:
    reason = str(error.orig if isinstance(error, DBAPIError) else error).strip().partition("\n")[0]
    file = _sqlite_file(url)
    if file is not None and any(mark in reason.lower() for mark in _NO_ROOM) and free_bytes(file.parent) < STEP:
        return Unavailable(
            f"the disk of {file} is full ({reason}): nothing was changed; reading, `loratree delete` and `loratree gc` "
            "work from a reserve, and if that is used up too, free some space elsewhere first"
        )
    if file is not None and file.is_dir():
        return Unavailable(f"the database {file} is a folder: set LORATREE_DATABASE to a file, or move the folder away")
    remedy = next((text for mark, text in _REMEDIES.items() if mark in reason.lower()), "check that it is running")
    return Unavailable(f"the database {_mask(url)} does not answer ({reason}): {remedy}")


def _mask(url: URL) -> str:
    return without_secrets(url.render_as_string(hide_password=True))
