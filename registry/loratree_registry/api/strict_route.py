"""What every route does: read bounded JSON, answer with a validator."""

import functools
import hashlib
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from loratree_registry.api.handlers import path_of
from loratree_registry.core.strict_json import parse_json
from loratree_registry.errors import Invalid

_JSON: Final = "application/json"
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

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        reads = set(options.get("methods") or ()) == {"GET"}
        super().__init__(path, _written(endpoint) if reads else endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler, between a bounded request and a conditional answer."""
        handler = super().get_route_handler()
        kind = self.body_field.field_info.annotation if self.body_field else None
        record = None if kind is None else TypeAdapter[Any](kind)

        async def answer(request: Request) -> Response:
            read = _RecordRequest(request, None if record is None else await _record(request, record, self.max_body))
            response = await handler(read)
            if request.method == "GET" and response.status_code == 200 and "etag" not in response.headers:
                return _conditional(request, response)
            return response

        return answer


def _written(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint, whose record is written as JSON in the thread that made it.

    The framework would first check in another thread what is a record already: a third of an answer's time.
    """
    kind = inspect.signature(endpoint).return_annotation
    if kind is Response:
        return endpoint
    record = TypeAdapter[Any](kind)

    @functools.wraps(endpoint)
    def written(**given: Any) -> Response:
        found = endpoint(**given)
        return found if isinstance(found, Response) else Response(record.dump_json(found), media_type=_JSON)

    return written


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


class _RecordRequest(Request):
    """A request whose JSON is the record that it stands for, as the framework's own reading is laxer."""

    def __init__(self, request: Request, record: object) -> None:
        super().__init__(request.scope, request.receive)
        self._record = record

    async def body(self) -> bytes:
        """Something where there is a record, which the framework then asks for."""
        return b"" if self._record is None else b"{}"

    async def json(self) -> Any:
        """The record."""
        return self._record


async def _record(request: Request, kind: TypeAdapter[Any], limit: int) -> object:
    """The request's JSON as a record, strictly typed; None where there is no body.

    Only application/json is read: a web page may send any other type, or none, to this machine without being asked.
    """
    body = await _bounded(request, limit)
    if not body:
        return None
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise Invalid(
            f"the body of {request.method} {path_of(request)} is not JSON: send a JSON object as application/json"
        )
    try:
        found: object = kind.validate_json(body, strict=True)
        parse_json(body)  # the framework's reader takes a key twice: the last one wins
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from error
    except ValueError as error:
        raise Invalid(f"the body of {request.method} {path_of(request)} may be read in two ways: {error}") from error
    return found


async def _bounded(request: Request, limit: int) -> bytes:
    """The body, never more than the limit in memory; more, or more announced, raises 413."""
    if int(request.headers.get("content-length", 0)) > limit:
        raise HTTPException(413)
    received = bytearray()
    try:
        async for chunk in request.stream():
            if len(received) + len(chunk) > limit:
                raise HTTPException(413)
            received += chunk
    except ClientDisconnect as error:
        raise Invalid("the body was cut off while it was sent: send it again") from error
    return bytes(received)
