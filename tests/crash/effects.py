"""Every effect that a process has on the world, counted just before it happens, so that it can die or be cut off there.

Watched from outside the product: audit hooks tell of files, SQLAlchemy's dialect of statements, sockets of messages.
Whatever lies between two effects changes nothing that outlives the process, so dying before each of them, and before
the end, is dying everywhere. (What SQLite does inside one COMMIT, and a file that is written in part, are not seen: a
file's name is.)
"""

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.engine.default import DefaultDialect

Kind = Literal["file", "blob", "sql", "net", "end"]
Harm = Literal["kill", "cut", "cut for good"]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_ALL: tuple[Kind, ...] = ("file", "blob", "sql", "net", "end")


@dataclass(frozen=True)
class Fault:
    """What befalls a process before the effect numbered `at`, from 1; of those of `kinds` alone. 0 is never."""

    at: int = 0
    harm: Harm = "kill"
    kinds: tuple[Kind, ...] = _ALL


class Trace:
    """Writes each effect to the file `log`, a line each, and does the fault when its turn comes."""

    def __init__(self, log: str, fault: Fault, *, home: str, blobs: str) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._fault, self._home, self._blobs = fault, home, blobs
        self._count = 0
        self._lock = threading.Lock()
        self._sent: dict[int, str] = {}  # by socket: what it sent last and was not answered

    def watch(self) -> None:
        """Begins to count. It cannot be ended: audit hooks stay as long as the process."""
        sys.addaudithook(self._audited)
        _wrap(os, "fsync", self._synced)
        for name in ("do_execute", "do_executemany", "do_execute_no_params"):
            _wrap(DefaultDialect, name, self._executed)
        _wrap(DefaultDialect, "do_rollback", self._rolled_back)
        _wrap(DefaultDialect, "do_commit", self._committed)
        for name in ("send", "sendall"):
            _wrap(socket.socket, name, self._sending)
        for name in ("recv", "recv_into"):
            _wrap(socket.socket, name, self._receiving)
        if self._fault.harm != "kill":  # a client that is cut off waits before it tries again
            _wrap(time, "sleep", lambda sleep, seconds: sleep(min(seconds, 0.001)))

    def effect(self, kind: Kind, label: str, cut: Callable[[], None] = lambda: None) -> None:
        """Counts an effect that is about to happen; `cut` makes it fail as a lost connection or disk would."""
        if kind not in self._fault.kinds:
            return
        with self._lock:
            self._count += 1
            count = self._count
            os.write(self._log, (label.replace(self._home, "HOME").replace("\n", " ")[:200] + "\n").encode())
        if self._fault.harm == "kill" and count == self._fault.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if count == self._fault.at or (self._fault.harm == "cut for good" and 0 < self._fault.at < count):
            cut()

    def _audited(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES:
                self._file("open", path)
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._file(event.removeprefix("os."), arguments[1])
        elif event in ("os.remove", "os.rmdir"):  # with a folder's handle where a whole tree is removed
            self._file(event.removeprefix("os."), _within(arguments[1], arguments[0]))
        elif event in ("os.mkdir", "os.truncate"):
            self._file(event.removeprefix("os."), arguments[0])

    def _file(self, verb: str, path: Any) -> None:
        name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
        if not isinstance(name, str) or not name.startswith(self._home):
            return  # the interpreter's own, such as a module that it compiled

        def fail() -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)

        self.effect("blob" if name.startswith(self._blobs) else "file", f"{verb} {name}", fail)

    def _synced(self, fsync: Callable[[int], None], handle: int) -> None:
        self._file("fsync", _opened(handle))
        fsync(handle)

    def _executed(self, execute: Callable[..., None], dialect: Any, cursor: Any, statement: str, *rest: Any) -> None:
        self.effect("sql", " ".join(statement.split())[:60], lambda: _lose(dialect, cursor.connection))
        execute(dialect, cursor, statement, *rest)

    def _rolled_back(self, rollback: Callable[..., None], dialect: Any, connection: Any) -> None:
        self.effect("end", "ROLLBACK")  # a database that is lost has rolled back
        rollback(dialect, connection)

    def _committed(self, commit: Callable[..., None], dialect: Any, connection: Any) -> None:
        self.effect("sql", "COMMIT", lambda: _lose(dialect, connection))
        commit(dialect, connection)
        self.effect("sql", "the answer to COMMIT", lambda: _lose(dialect, connection, after=True))

    def _sending(self, send: Callable[..., Any], sock: socket.socket, data: Any, *rest: Any) -> Any:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            first = bytes(data[:120]).partition(b"\r\n")[0]
            what = first.decode("ascii", "replace") if b"HTTP/1.1" in first else f"{len(data)} bytes"
            self.effect("net", f"send {what}", lambda: _disconnect(sock))
            self._sent[sock.fileno()] = what
        return send(sock, data, *rest)

    def _receiving(self, receive: Callable[..., Any], sock: socket.socket, *rest: Any) -> Any:
        what = self._sent.pop(sock.fileno(), None)
        if what is not None:
            self.effect("net", f"await the answer to {what}", lambda: _disconnect(sock))
        return receive(sock, *rest)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replaces a function by one that hands it to `around`, before its arguments."""
    inner = getattr(owner, name)
    setattr(owner, name, lambda *given, **named: around(inner, *given, **named))


def _within(folder: int, path: Any) -> Any:
    return path if folder == -1 else str(_opened(folder) / path)


def _opened(handle: int) -> Path:
    return Path(f"/proc/self/fd/{handle}").readlink()


def _disconnect(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def _lose(dialect: Any, connection: Any, *, after: bool = False) -> None:
    """Cuts a database's connection: PostgreSQL's socket, or SQLite's disk; `after` the work is done, it never fails."""
    if dialect.name == "postgresql":
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as shared:
            _disconnect(shared)
        if not after:
            return  # the driver finds out by itself
        raise dialect.loaded_dbapi.OperationalError("server closed the connection unexpectedly")
    raise dialect.loaded_dbapi.OperationalError("disk I/O error")
