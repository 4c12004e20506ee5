"""A line for each request, and the id by which an operator finds it.

The line does not pass through `logging`, which takes longer for a record than the server for a kept answer.
"""

import logging
import re
import secrets
import time
from collections.abc import Iterable, MutableMapping
from itertools import count
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loratree_registry.api.log.lines import REQUEST_ID, Stamp, write_json
from loratree_registry.api.log.settings import LogSettings
from loratree_registry.api.log.sink import Sink, to_stderr
from loratree_registry.core.text import one_line, shortened
from loratree_registry.errors import fitted

REQUEST: Final = "loratree.request"  # the key in a scope of what is known of its request
_HEADER: Final = b"x-request-id"
_SANE: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:+/=@-]{0,99}")
_HEALTH: Final = "/v1/health"
# Parameters whose values are shown. A reason is words about data, and what we do not know may be a secret.
_SHOWN: Final = frozenset({"after", "content", "expected", "follow", "keep", "limit", "name", "strict", "weight"})
_LONGEST: Final = 600  # characters of a path, and of a query


class Asked:
    """One request: its id, and what is sent as its answer. `cause` says why it failed by the server's fault."""

    __slots__ = ("_send", "bytes", "cause", "id", "status")

    def __init__(self, id_: str, send: Send) -> None:
        self.id, self._send = id_, send
        self.status, self.bytes = 500, 0  # as uvicorn answers if nothing is sent
        self.cause: str | None = None

    async def send(self, message: Message) -> None:
        """Send a part of the answer on, with the id among its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (_HEADER, self.id.encode())]
        else:
            self.bytes += len(message.get("body", b""))
        await self._send(message)


class RequestLog:
    """A middleware around the whole application: it gives each request an id, and writes its line, if `settings` ask.

    The id is the client's own `X-Request-ID` if that is sane. It is in the answer's header of the same name.
    """

    def __init__(self, app: ASGIApp, settings: LogSettings | None = None, sink: Sink | None = None) -> None:
        self._app = app
        self._prefix, self._numbers = secrets.token_hex(4), count(1)  # no two workers have one prefix
        self._level = settings.number if settings else logging.CRITICAL
        self._is_json = settings is not None and settings.form == "json"
        self._sink, self._stamp = (sink or to_stderr()) if settings else None, Stamp()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; write its line when its answer is sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Asked(_find_id(scope["headers"]) or f"{self._prefix}-{next(self._numbers):x}", send)
        scope[REQUEST] = asked
        REQUEST_ID.set(asked.id)
        begun = time.perf_counter()
        try:
            await self._app(scope, receive, asked.send)
        except Exception as error:  # uvicorn logs it, with its traceback
            asked.cause = _describe_bug(error)
            raise
        finally:
            if self._sink is not None:
                self._write(scope, asked, time.perf_counter() - begun)

    def _write(self, scope: Scope, asked: Asked, seconds: float) -> None:
        path = _show((scope.get("raw_path") or b"").decode("latin-1"))
        level, number = _level_of(asked.status, path)
        if number < self._level or self._sink is None:
            return
        query = _show_query(scope["query_string"].decode("ascii", "replace")) if scope["query_string"] else ""
        sent = 0 if scope["method"] == "HEAD" else asked.bytes
        if self._is_json:
            fields = {"time": self._stamp(), "level": level, "method": scope["method"], "path": path}
            fields |= {"query": query} if query else {}
            fields |= {"status": asked.status, "ms": round(1000 * seconds, 2), "bytes": sent, "id": asked.id}
            self._sink.put(write_json(fields | ({"cause": asked.cause} if asked.cause else {})))
            return
        asks = f"{path}?{query}" if query else path
        cause = f" cause: {asked.cause}" if asked.cause else ""
        self._sink.put(
            f"{self._stamp()} {level:<7} {_show(scope['method'])} {asks} {asked.status} {1000 * seconds:.2f}ms "
            f"{sent}B id={asked.id}{cause}"
        )


def asked_in(scope: MutableMapping[str, Any]) -> Asked | None:
    """Return what is known of a scope's request, or None if nothing gives requests an id."""
    return scope.get(REQUEST)


def note_cause(asked: Asked | None, sentence: str) -> None:
    """Note why a request fails by the server's fault, for its line."""
    if asked is not None:
        asked.cause = one_line(sentence)


def _find_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the client's own id of its request, or None if there is none that is sane."""
    for name, value in headers:
        if name == _HEADER:
            return value.decode() if _SANE.fullmatch(value) else None
    return None


def _level_of(status: int, path: str) -> tuple[str, int]:
    if status >= 500:
        return "error", logging.ERROR
    return ("debug", logging.DEBUG) if path == _HEALTH else ("info", logging.INFO)


def _show(text: str) -> str:
    """Return what a client sent, cut and in printable ASCII."""
    text = text if len(text) <= _LONGEST else shortened(text, _LONGEST)
    return text if text.isascii() and text.isprintable() else ascii(text)[1:-1]


def _show_query(query: str) -> str:
    """Return a query without the values, or the names, that may be secrets."""
    return _show("&".join(part if part.partition("=")[0] in _SHOWN else "*" for part in query.split("&")))


def _describe_bug(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
    return fitted(one_line(f"a bug, {type(error).__name__} in {place}, whose traceback is in this log: {error}"))
