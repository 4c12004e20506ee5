"""A stamp that changes whenever the database may have changed, for answers that are kept in memory."""

import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Engine


class Changes:
    """The changes of an SQLite database, told by a connection that only looks; it takes a few microseconds.

    Two equal stamps mean that no transaction was committed between them, by any process: this is SQLite's
    `PRAGMA data_version` (https://sqlite.org/pragma.html#pragma_data_version). Other databases have no stamp. It is
    thread-safe.
    """

    def __init__(self, engine: Engine) -> None:
        name = engine.url.database if engine.dialect.name == "sqlite" else None
        self._file = None if not name or name.startswith("file:") else Path(name).absolute()
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._generation = 0  # a new connection counts from another number

    def stamp(self) -> tuple[int, int] | None:
        """Return the stamp, or None if there is none now. It never waits for another process."""
        if self._file is None:
            return None
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = _open(self._file)
                    self._generation += 1
                version: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
            except (sqlite3.Error, TypeError):
                self._close()
                return None
            return self._generation, version

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


def _open(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(file))}?mode=ro", uri=True, timeout=0, isolation_level=None, check_same_thread=False
    )
