"""The server's connections: deadlines for what a client sends and takes, and a bound on how many are open.

uvicorn closes a connection that is idle between two requests, and no other: a client that stops within a header, a body
or an answer would hold its connection for ever. docs/reliability.md has the figures.
"""

import asyncio
import fcntl
import logging
import resource
import struct
import sys
import termios
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter
from uvicorn.protocols.http.h11_impl import H11Protocol

from loratree_registry.errors import Unavailable
from loratree_registry.wire.problem import MEDIA_TYPE, Problem, late, malformed, problem_of, too_long

MAX_HEADER: Final = 64 * 1024  # bytes of a request's line and header fields, as h11 has it
_LOG = logging.getLogger("uvicorn.error")
_SPARE_FILES: Final = 64  # of the database, the log and the program
_PAUSED_S: Final = 1.0  # a client that moves bytes more often than this is never closed to make room


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds for a whole header, seconds without a byte of a body or an answer, and connections in one process."""

    header_s: float = 10.0
    stall_s: float = 30.0
    connections: int = 512


class Guarded:
    """A mixin for uvicorn's protocols that keeps `bounds`; `bounds.header_s` counts from a header's first byte.

    A body or an answer may be as slow as it likes while it moves. If as many connections are open as may be, the one
    that has waited longest for its client is closed to make room, and only if the server works for all of them is the
    new one refused. So clients that send nothing cannot keep others out.
    """

    bounds: ClassVar[Bounds] = Bounds()
    # What uvicorn's protocols have.
    transport: Any
    cycle: Any
    flow: Any
    loop: Any
    connections: Any
    server_state: Any

    _header_since: float | None
    _closing_since: float | None = None
    _moved: float
    _header_bytes = 0
    _unsent: tuple[int, int] | None = None

    def connection_made(self, transport: Any) -> None:
        """Watch a new connection, or refuse it."""
        super().connection_made(transport)  # type: ignore[misc]
        self._header_since = self._moved = self.loop.time()
        _Watch.of(self).admit(self)

    def data_received(self, data: bytes) -> None:
        """Note that bytes came, and hold a header to its bound."""
        self._moved = self.loop.time()
        if not self._awaits_header() or self._has_rest():
            self._feed(data)
            return
        if self._header_since is None:
            self._header_since, self._header_bytes = self._moved, 0
        room = MAX_HEADER - self._header_bytes
        self._header_bytes += len(data)
        self._feed(data[:room])
        if len(data) > room and not self.transport.is_closing():
            if self._awaits_header():
                self.refuse(too_long(MAX_HEADER))
            else:
                self._feed(data[room:])

    def _feed(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]

    def on_response_complete(self) -> None:
        """Begin to wait for the next header, or for the rest of a body that nobody reads."""
        self._header_since = self.loop.time() if self.cycle.more_body else None
        self._header_bytes = 0
        super().on_response_complete()  # type: ignore[misc]

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP with a problem document, and close the connection."""
        self.refuse(malformed(str(sys.exception() or msg)))  # uvicorn calls this while it handles the parser's error

    def refuse(self, problem: Problem) -> None:
        """Answer a problem, if no answer has begun, and close the connection."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            self.transport.write(_answer(problem))
        self.leave()

    def leave(self) -> None:
        """Close the connection, also if the client takes no byte any more; the application sees a disconnect."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.flow.write_paused:
            self.transport.abort()
        else:
            self.transport.close()

    def _awaits_header(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _has_rest(self) -> bool:
        """Return whether the client still sends a body that was answered before its end, and that is thrown away."""
        return self.cycle is not None and self.cycle.response_complete and self.cycle.more_body

    def is_between(self) -> bool:
        """Return whether the connection waits for a header, and the client has taken the answer before it."""
        return self._awaits_header() and not self._is_sending()

    def _is_sending(self) -> bool:
        """Return whether bytes of an answer wait for the client; uvicorn calls an answer complete before they left."""
        return bool(self.transport.get_write_buffer_size())

    def _note_progress(self, now: float) -> None:
        """Note when the client last took a byte of what waits for it."""
        unsent = (self.transport.get_write_buffer_size(), _count_unsent(self.transport))
        if unsent != self._unsent:
            self._unsent, self._moved = unsent, now

    def waits_since(self, now: float) -> float | None:
        """Return since when the connection has waited for its client, or None if the server is at work for it."""
        if self._is_sending():
            self._note_progress(now)
            return self._moved
        if self._awaits_header():
            return self._moved if self._header_since is None else self._header_since
        if not self.cycle.more_body:
            return None
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            self._moved = now  # the server has not asked for more yet
            return None
        return self._moved

    def check(self, now: float) -> None:
        """Close the connection if its client is later than the bounds allow."""
        if self.transport.is_closing():
            self._check_closing(now)
        elif (since := self.waits_since(now)) is not None:
            self._check_waiting(now, since)

    def _check_closing(self, now: float) -> None:
        """Abort the connection if its client does not take what it still has to send."""
        self._closing_since = self._closing_since or now
        if self._is_sending():
            self._note_progress(now)
        if now - max(self._closing_since, self._moved) > self.bounds.stall_s:
            self.transport.abort()

    def _check_waiting(self, now: float, since: float) -> None:
        if self._is_sending():
            if now - since > self.bounds.stall_s:
                _LOG.warning("closed a connection: its client took no answer")
                self.leave()
                self.transport.abort()
        elif not self._awaits_header():
            if now - since > self.bounds.stall_s:
                _LOG.warning("closed a connection: its client sent no more body")
                self.refuse(late("body", self.bounds.stall_s))
        elif self._header_since is not None and now - since > self.bounds.header_s:
            _LOG.warning("closed a connection: its client sent no whole header in time")
            if self._header_bytes and not self._has_rest():
                self.refuse(late("header", self.bounds.header_s))
            else:
                self.leave()


class GuardedH11(Guarded, H11Protocol):
    """HTTP by h11, in Python."""


HttpProtocol: type[Guarded] = GuardedH11

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:  # httptools is not installed
    pass
else:

    class GuardedHttpTools(Guarded, HttpToolsProtocol):
        """HTTP by httptools, in C, which itself bounds neither a header nor the fields after a chunked body."""

        _other_bytes = 0  # that came since the last byte of a body

        def on_message_begin(self) -> None:
            """Count from nothing for each request."""
            self._other_bytes = 0
            super().on_message_begin()

        def on_body(self, body: bytes) -> None:
            """Count from nothing after each piece of a body."""
            self._other_bytes = 0
            super().on_body(body)

        def _feed(self, data: bytes) -> None:
            self._other_bytes += len(data)
            super()._feed(data)
            if self._other_bytes > 2 * MAX_HEADER and not self.transport.is_closing():
                self.refuse(too_long(MAX_HEADER))

    HttpProtocol = GuardedHttpTools


class _Watch:
    """The connections of one server, looked at a few times within the shortest deadline while there are any."""

    def __init__(self, first: Guarded) -> None:
        self._connections, self._loop = first.connections, first.loop
        self._pause = min(1.0, first.bounds.header_s / 4, first.bounds.stall_s / 4)
        self._limit = min(first.bounds.connections, _count_files())
        self._running = False

    @classmethod
    def of(cls, connection: Guarded) -> "_Watch":
        """Return the watch of a connection's server."""
        state = connection.server_state
        if state not in _WATCHES:
            _WATCHES[state] = cls(connection)
        return _WATCHES[state]

    def admit(self, connection: Guarded) -> None:
        """Take a new connection in the place of one that waits for its client, or refuse it."""
        if len(self._connections) > self._limit:
            _LOG.warning("%d connections are open, the most that this process takes", self._limit)
            if (other := self._find_waiting(connection)) is None:
                sentence = f"this server works for {self._limit} clients, as many as it takes: try again in a while"
                connection.refuse(problem_of(Unavailable(sentence), "/"))
            else:
                other.leave()
        if not self._running:
            self._running = True
            self._loop.call_later(self._pause, self._sweep)

    def _find_waiting(self, new: Guarded) -> Guarded | None:
        """Return the connection that waits longest for its client: for a header if there is one, else for a body."""
        now = self._loop.time()
        waiting = [
            (not other.is_between(), since, id(other), other)
            for other in self._connections
            if other is not new and not other.transport.is_closing() and (since := other.waits_since(now)) is not None
        ]
        late = [entry for entry in waiting if not entry[0] or now - entry[1] > _PAUSED_S]
        return min(late)[-1] if late else None

    def _sweep(self) -> None:
        now = self._loop.time()
        for connection in list(self._connections):
            connection.check(now)
        self._running = bool(self._connections)
        if self._running:
            self._loop.call_later(self._pause, self._sweep)


_WATCHES: "WeakKeyDictionary[Any, _Watch]" = WeakKeyDictionary()  # by uvicorn's state of a server


def _count_files() -> int:
    """Return how many connections the process has files for, two each; raise its own limit as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * Bounds().connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, (wanted if soft == resource.RLIM_INFINITY else soft) // 2 - _SPARE_FILES // 2)


def _count_unsent(transport: asyncio.Transport) -> int:
    """Return how many bytes the kernel holds that the client has not confirmed."""
    found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    count: int = struct.unpack("i", found)[0]
    return count


def _answer(problem: Problem) -> bytes:
    """Return a whole answer, for a client whose request never reaches the application."""
    body = TypeAdapter(Problem).dump_json(problem, exclude_none=True)
    head = f"HTTP/1.1 {problem.status} {problem.title}\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body
