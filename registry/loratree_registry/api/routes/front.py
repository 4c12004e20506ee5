"""What a person or a program finds first: `/`, the description of the API at `/docs`, and its document.

They are no routes of the API: the OpenAPI document does not name them.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable
from functools import cache
from html import escape
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.routing import Route

from loratree_registry.api.docs_page import POLICY, describe, page
from loratree_registry.api.encoding import weigh
from loratree_registry.api.strict_route import answer_conditionally

_HTML: Final = "text/html; charset=utf-8"
_JSON: Final = "application/json"
_LINKS: Final = {"docs": "/docs", "openapi": "/openapi.json", "health": "/v1/health"}


def add_front(app: FastAPI) -> None:
    """Add the pages of `app`. Each is made once, when it is first asked for, in a thread."""

    @cache
    def write_document() -> bytes:
        return json.dumps(app.openapi(), separators=(",", ":")).encode()

    @cache
    def write_docs() -> bytes:
        return describe(app.openapi()).encode()

    @cache
    def write_front(as_html: bool) -> bytes:
        return _front_page(app).encode() if as_html else _front_record(app)

    async def front(request: Request) -> Response:
        as_html = _prefers_html(request)
        answer = await _answer(request, lambda: write_front(as_html), _HTML if as_html else _JSON)
        answer.headers.append("Vary", "Accept")
        return answer

    async def docs(request: Request) -> Response:
        return await _answer(request, write_docs, _HTML)

    async def document(request: Request) -> Response:
        return await _answer(request, write_document, _JSON)

    pages: dict[str, Callable[[Request], Awaitable[Response]]] = {
        "/": front,
        "/docs": docs,
        "/openapi.json": document,
    }
    for path, endpoint in pages.items():
        app.router.routes.append(Route(path, endpoint, methods=["GET"], include_in_schema=False))


async def _answer(request: Request, write: Callable[[], bytes], kind: str) -> Response:
    body = await run_in_threadpool(write)
    headers = {"X-Content-Type-Options": "nosniff"} | ({"Content-Security-Policy": POLICY} if kind == _HTML else {})
    etag = f'"{hashlib.sha256(body).hexdigest()}"'
    return await answer_conditionally(request, Response(body, media_type=kind, headers=headers), etag)


def _front_record(app: FastAPI) -> bytes:
    about: dict[str, Any] = {"name": app.title, "version": app.version, "description": app.description}
    return json.dumps(about | _LINKS).encode()


def _front_page(app: FastAPI) -> str:
    links = "".join(f'<li><a href="{path}">{path}</a></li>' for path in _LINKS.values())
    body = f"<h1>{escape(app.title)} {escape(app.version)}</h1><p>{escape(app.description)}</p><ul>{links}</ul>"
    return page(app.title, body)


def _prefers_html(request: Request) -> bool:
    """Return whether the client lists HTML, and lists JSON later or with a smaller weight."""
    kinds = [weigh(part.lower()) for part in ",".join(request.headers.getlist("accept")).split(",") if part.strip()]
    ranked = [kind for kind, q in sorted(kinds, key=lambda kind: -kind[1]) if q > 0]
    first = next((kind for kind in ranked if kind in ("text/html", "application/xhtml+xml", _JSON, "*/*")), _JSON)
    return first in ("text/html", "application/xhtml+xml")
