"""The short way of a plain read: a GET of the catalog without a query, which is most of what a registry is asked.

The framework's own way resolves dependencies, validates and opens exit stacks for each request, and takes longer than
the database. A plain read needs none of it: its one parameter is the path. Its answer is kept while nothing in the
database changes (`EmbeddedRegistry.changes`), so that an answer that is asked for often costs no query.
"""

import asyncio
import hashlib
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from loratree_registry.api.encoding import LARGE, VARY, compress, of_gzip, takes_gzip
from loratree_registry.api.handlers import respond_to
from loratree_registry.api.kept_answers import Answer, Changes, kept_answers, see
from loratree_registry.errors import LoratreeError
from loratree_registry.wire.problem import problem_of

REVALIDATE: Final = "private, no-cache"
# Threads that compute answers. They share one interpreter, and each that waits for it slows the others: answers from
# SQLite hardly wait for anything else, and two threads compute a sixth more of them than four.
_OVER_NETWORK: Final = ThreadPoolExecutor(4, "plain-read")
_OVER_FILE: Final = ThreadPoolExecutor(2, "plain-read")

Headers = dict[bytes, bytes]


def plain_parameter(endpoint: Callable[..., Any], path_parameters: list[str]) -> str | None:
    """Return the name of an endpoint's one path parameter, "" if it has none, or None if it is no plain read.

    A plain read takes the registry and at most one path parameter, and each of its other parameters has a default.
    """
    parameters = dict(inspect.signature(endpoint).parameters)
    if parameters.pop("registry", None) is None or len(path_parameters) > 1:
        return None
    rest = [p for name, p in parameters.items() if name not in path_parameters]
    if any(p.default is inspect.Parameter.empty for p in rest):
        return None
    return path_parameters[0] if path_parameters else ""


def is_plain(scope: Scope) -> bool:
    """Return whether a request has neither a query nor a body."""
    if scope["query_string"] or scope["method"] != "GET":
        return False
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            return False
    return True


async def answer_plainly(
    scope: Scope, receive: Receive, send: Send, read: Callable[[], bytes], *, keeps_s: float | None = None
) -> None:
    """Send what `read` returns as JSON with its ETag, or 304, or the problem that it raises.

    An answer is kept until the database changes, and at most for `keeps_s` seconds; an answer with `keeps_s` does not
    depend on what the database holds, so it is also kept where the database does not tell that it changes.
    """
    path = scope["path"]
    changes: Changes | None = getattr(scope["app"].state.registry, "changes", None)
    kept, stamp = kept_answers(changes), await see(changes, keeps_s)
    answer = kept.find(path, stamp)
    if answer is None:
        try:
            pool = _OVER_NETWORK if changes is None or changes.asks_server else _OVER_FILE
            answer = await asyncio.get_running_loop().run_in_executor(pool, _compute, read)
        except LoratreeError as error:
            raw: bytes = scope.get("raw_path") or path.encode()
            await respond_to(scope, problem_of(error, raw.decode("ascii", "replace")))(scope, receive, send)
            return
        kept.keep(path, stamp, answer)
    etag, body = answer
    varies = encodes = False
    if len(body) >= LARGE:
        varies, encodes = True, takes_gzip(scope["headers"])
        etag = of_gzip(etag) if encodes else etag
    headers = [(b"etag", etag), (b"cache-control", REVALIDATE.encode())] + ([VARY] if varies else [])
    if _is_held(scope, etag):
        await send({"type": "http.response.start", "status": 304, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return
    if encodes:
        body = await asyncio.get_running_loop().run_in_executor(_OVER_FILE, compress, body)
        headers.append((b"content-encoding", b"gzip"))
    headers += [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def unchanged(request: Request, etag: str) -> bool:
    """Return whether If-None-Match says that the client already holds this representation."""
    return _is_held(request.scope, etag.encode())


def _compute(read: Callable[[], bytes]) -> Answer:
    body = read()
    return b'"%b"' % hashlib.sha256(body).hexdigest().encode(), body


def _is_held(scope: Scope, etag: bytes) -> bool:
    values = b",".join(value for name, value in scope["headers"] if name == b"if-none-match")
    if not values:
        return False
    etags = [value.strip().removeprefix(b"W/") for value in values.split(b",")]
    return etag in etags or b"*" in etags
