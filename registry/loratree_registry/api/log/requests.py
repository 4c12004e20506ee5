"""A line for each request, and the id by which an operator finds it.

The line does not pass through `logging`, which takes longer for a record than the server for a kept answer.
"""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Iterable, MutableMapping
from itertools import count
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loratree_registry.api.log.lines import REQUEST_ID, Stamp, quote
from loratree_registry.api.log.settings import LogSettings
from loratree_registry.api.log.sink import Sink, to_stderr
from loratree_registry.core.text import one_line, shortened
from loratree_registry.errors import fitted

REQUEST: Final = "loratree.request"  # the key in a scope of what is known of its request
_HEADER: Final = b"x-request-id"
_SANE: Final = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:+/=@-]{0,99}")
_HEALTH: Final = "/v1/health"
# Parameters whose values are shown. A reason is words about data, and what we do not know may be a secret.
_SHOWN: Final = frozenset(b"after content expected follow keep limit name strict weight".split())
_LONGEST: Final = 600  # characters of a path, and of a query


class Asked:
    """One request: its id, and what is sent as its answer. `cause` says why it failed by the server's fault."""

    __slots__ = ("_send", "bytes", "cause", "header", "status")

    def __init__(self, id_: bytes, send: Send) -> None:
        self.header, self._send = (_HEADER, id_), send
        self.status, self.bytes = 500, 0  # as uvicorn answers if nothing is sent
        self.cause: str | None = None

    @property
    def id(self) -> str:
        """The id as text."""
        return self.header[1].decode()

    def send(self, message: Message) -> Awaitable[None]:
        """Send a part of the answer on, with the id among its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), self.header]
        elif body := message.get("body"):
            self.bytes += len(body)
        return self._send(message)  # no coroutine of its own: each would cost as much as all else here


class RequestLog:
    """A middleware around the whole application: it gives each request an id, and writes its line, if `settings` ask.

    The id is the client's own `X-Request-ID` if that is sane. It is in the answer's header of the same name.
    """

    def __init__(self, app: ASGIApp, settings: LogSettings | None = None, sink: Sink | None = None) -> None:
        self._app = app
        self._prefix, self._numbers = secrets.token_hex(4).encode(), count(1)  # no two workers have one prefix
        self._level = settings.number if settings else logging.CRITICAL
        self._is_json = settings is not None and settings.form == "json"
        self._sink, self._stamp = (sink or to_stderr()) if settings else None, Stamp()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; write its line when its answer is sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Asked(_find_id(scope["headers"]) or b"%b-%x" % (self._prefix, next(self._numbers)), send)
        scope[REQUEST] = asked
        REQUEST_ID.set(asked)
        begun = time.perf_counter()
        try:
            await self._app(scope, receive, asked.send)
        except Exception as error:  # uvicorn logs it, with its traceback
            asked.cause = _describe_bug(error)
            raise
        finally:
            del scope[REQUEST]  # it leads back to the scope, and such a circle waits for the garbage collector
            if self._sink is not None:
                self._write(scope, asked, time.perf_counter() - begun)

    def _write(self, scope: Scope, asked: Asked, seconds: float) -> None:
        path, status = _show(scope.get("raw_path") or b""), asked.status
        if status >= 500:
            level, number = "error", logging.ERROR
        else:
            level, number = ("info", logging.INFO) if path != _HEALTH else ("debug", logging.DEBUG)
        if number < self._level or self._sink is None:
            return
        query = _show_query(scope["query_string"]) if scope["query_string"] else ""
        method, sent = scope["method"], asked.bytes if scope["method"] != "HEAD" else 0
        moment, ms, id_, cause = self._stamp(), 1000 * seconds, asked.id, asked.cause
        if self._is_json:
            query = f' "query": {quote(query)},' if query else ""
            line = (
                f'{{"time": "{moment}", "level": "{level}", "method": {quote(method)}, "path": {quote(path)},{query} '
                f'"status": {status}, "ms": {ms:.2f}, "bytes": {sent}, "id": "{id_}"'
            )
            self._sink.put(f'{line}, "cause": {quote(cause)}}}' if cause else line + "}")
            return
        line = f"{moment} {level:<7} {method} {path}{f'?{query}' if query else ''} {status} {ms:.2f}ms {sent}B id={id_}"
        self._sink.put(f"{line} cause: {cause}" if cause else line)


def asked_in(scope: MutableMapping[str, Any]) -> Asked | None:
    """Return what is known of a scope's request, or None if nothing gives requests an id."""
    return scope.get(REQUEST)


def note_cause(asked: Asked | None, sentence: str) -> None:
    """Note why a request fails by the server's fault, for its line."""
    if asked is not None:
        asked.cause = one_line(sentence)


def _find_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the client's own id of its request, or None if there is none that is sane."""
    for name, value in headers:
        if name == _HEADER:
            return value if _SANE.fullmatch(value) else None
    return None


def _show(sent: bytes) -> str:
    """Return what a client sent, cut and in printable ASCII."""
    text = sent.decode("latin-1")
    if len(text) <= _LONGEST and text.isascii() and text.isprintable():
        return text
    return ascii(shortened(text, _LONGEST))[1:-1]


def _show_query(query: bytes) -> str:
    """Return a query without the values, or the names, that may be secrets."""
    return _show(b"&".join(part if part.partition(b"=")[0] in _SHOWN else b"*" for part in query.split(b"&")))


def _describe_bug(error: Exception) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
    return fitted(one_line(f"a bug, {type(error).__name__} in {place}, whose traceback is in this log: {error}"))
