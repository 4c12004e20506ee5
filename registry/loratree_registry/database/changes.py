"""A stamp that changes whenever the database may have changed, for answers that are kept in memory."""

import sqlite3
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

# A snapshot names the transactions whose rows it shows, so two equal ones show the same rows. A standby's snapshot does
# not name those that are under way. Transaction numbers begin anew in another server, which started at another time.
# One row or none.
_SNAPSHOT = "SELECT pg_current_snapshot()::text, pg_postmaster_start_time()::text WHERE NOT pg_is_in_recovery()"


class Changes(ABC):
    """The changes of a database, told by a connection that only looks; it is thread-safe.

    Two equal stamps mean that no transaction was committed between them, by any process.
    """

    asks_server: bool  # stamp() may wait for another machine
    _errors: tuple[type[Exception], ...]
    _connection: Any = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._generation = 0  # a new connection counts anew

    def stamp(self) -> object | None:
        """Return the stamp, or None if there is none now."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._open()
                    self._generation += 1
                row = self._ask()
            except self._errors:
                self._close()  # the request that follows tells what is wrong with the database
                return None
            return None if row is None else (self._generation, *row)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(*self._errors):
                self._connection.close()
            self._connection = None

    @abstractmethod
    def _open(self) -> Any: ...

    @abstractmethod
    def _ask(self) -> tuple[Any, ...] | None: ...


class FileChanges(Changes):
    """Those of an SQLite file: its `PRAGMA data_version` (https://sqlite.org/pragma.html#pragma_data_version).

    A stamp takes a few microseconds and never waits for another process.
    """

    asks_server = False
    _errors = (sqlite3.Error,)

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file.absolute()

    @override
    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(
            f"file:{quote(str(self._file))}?mode=ro", uri=True, timeout=0, isolation_level=None, check_same_thread=False
        )

    @override
    def _ask(self) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] = self._connection.execute("PRAGMA data_version").fetchone()
        return row


class ServerChanges(Changes):
    """Those of a PostgreSQL server: what `pg_current_snapshot()` shows. A stamp takes one round trip.

    A standby gives no stamp. A server's other databases change it too.
    """

    asks_server = True

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._errors = (SQLAlchemyError, engine.dialect.loaded_dbapi.Error)

    @override
    def _open(self) -> Any:
        pooled = self._engine.raw_connection()
        connection: Any = pooled.driver_connection
        pooled.detach()  # it would take one of the pool's places for good
        connection.autocommit = True
        return connection

    @override
    def _ask(self) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._connection.execute(_SNAPSHOT).fetchone()
        return row


def changes_of(engine: Engine) -> Changes | None:
    """Return the changes of an engine's database, or None if no stamp tells them (an SQLite database in memory)."""
    if engine.dialect.name == "postgresql":
        return ServerChanges(engine)
    name = engine.url.database
    return None if not name or name.startswith("file:") else FileChanges(Path(name))
