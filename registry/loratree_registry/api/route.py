"""What every route does: read bounded JSON, answer with a validator."""

import hashlib
import json
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException

REVALIDATE: Final = "private, no-cache"
IMMUTABLE: Final = "private, max-age=31536000, immutable"


class Text(Convertor[str]):
    """Any text in a path, line breaks too; with the framework's own `path`, `tiny%0A` would be asked for as `tiny`."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """The text as it is."""
        return value

    def to_string(self, value: str) -> str:
        """The text as it is."""
        return value


register_url_convertor("text", Text())


class Route(APIRoute):
    """A route that reads at most `max_body` bytes of JSON, 200 levels deep, and whose GET answers carry an ETag."""

    max_body: ClassVar[int] = 1024 * 1024

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler, between a bounded request and a conditional answer."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            response = await handler(_BoundedRequest(request, self.max_body))
            if request.method == "GET" and response.status_code == 200 and "etag" not in response.headers:
                return _conditional(request, response)
            return response

        return answer


def unchanged(request: Request, etag: str) -> bool:
    """Tells whether If-None-Match says that the client holds this representation already."""
    held = [value.strip().removeprefix("W/") for value in request.headers.get("if-none-match", "").split(",")]
    return etag in held or "*" in held


def validators(etag: str, cache: str) -> dict[str, str]:
    """The headers that let a client keep an answer, for itself alone."""
    return {"ETag": etag, "Cache-Control": cache}


def _conditional(request: Request, response: Response) -> Response:
    etag = f'"{hashlib.sha256(response.body).hexdigest()}"'
    headers = validators(etag, REVALIDATE)
    if unchanged(request, etag):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return response


class _BoundedRequest(Request):
    def __init__(self, request: Request, limit: int) -> None:
        super().__init__(request.scope, request.receive)
        self._limit = limit

    async def body(self) -> bytes:
        """The body, never more than the limit in memory. Raises 413."""
        if not hasattr(self, "_body"):
            received = bytearray()
            async for chunk in self.stream():
                if len(received) + len(chunk) > self._limit:
                    raise HTTPException(413)
                received += chunk
            self._body = bytes(received)
        return self._body

    async def json(self) -> Any:
        """The body as JSON; this parser refuses 200 levels where the standard library's would exhaust the stack."""
        body = await self.body()
        try:
            return from_json(body)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from error
