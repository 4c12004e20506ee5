"""The route class behind every route: it reads bounded, strict JSON, and answers with an ETag."""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Collection, Coroutine
from typing import Any, ClassVar, Final

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from loratree_registry.api.body_limits import check_count, list_faults
from loratree_registry.api.encoding import LARGE, compress, of_gzip, takes_gzip
from loratree_registry.api.handlers import path_of
from loratree_registry.api.plain_reads import REVALIDATE, answer_plainly, is_plain, plain_parameter, unchanged
from loratree_registry.api.whole_numbers import with_whole_numbers
from loratree_registry.core.strict_json import parse_json
from loratree_registry.core.text import nearest
from loratree_registry.errors import Invalid

_JSON: Final = "application/json"
IMMUTABLE: Final = "private, max-age=31536000, immutable"


class Text(Convertor[str]):
    """A converter for any text in a path, line breaks too; the framework's `path` would read `tiny%0A` as `tiny`."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """Return the text unchanged."""
        return value

    def to_string(self, value: str) -> str:
        """Return the text unchanged."""
        return value


register_url_convertor("text", Text())


class Route(APIRoute):
    """A route that reads at most `max_body` bytes of JSON, 200 levels deep, and adds an ETag to its GET answers.

    `max_values` limits the values in the JSON: a MiB of small wrong ones took the parser a gigabyte of memory.
    """

    max_body: ClassVar[int] = 1024 * 1024
    max_values: ClassVar[int] = 20_000
    keeps_s: ClassVar[float | None] = None  # the most seconds that an answer is kept, also if nothing changes
    is_quick: ClassVar[bool] = True  # whether the answers read a few rows, and no files

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        reads = set(options.get("methods") or ()) == {"GET"}
        options["generate_unique_id_function"] = _operation_id
        super().__init__(path, _wrap_endpoint(endpoint) if reads else endpoint, **options)
        self._prefix = path.partition("{")[0]
        self._writes = _writing(endpoint) if reads else None
        self._parameter = (
            plain_parameter(endpoint, list(self.param_convertors)) if self._writes and self.is_quick else None
        )

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a request, and most often find by the beginning of its path that it is for another route."""
        if not scope["path"].startswith(self._prefix) and not scope.get("root_path"):
            return Match.NONE, {}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: a plain read the short way, any other as the framework does."""
        if self._parameter is None or self._writes is None or not is_plain(scope):
            await super().handle(scope, receive, send)
            return
        given = {self._parameter: scope["path_params"][self._parameter]} if self._parameter else {}
        read = functools.partial(self._writes, registry=scope["app"].state.registry, **given)
        await answer_plainly(scope, receive, send, read, keeps_s=self.keeps_s)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the framework's handler: read the body within the limit first, answer If-None-Match last."""
        handler = super().get_route_handler()
        kind = self.body_field.field_info.annotation if self.body_field else None
        schema = None if kind is None else TypeAdapter[Any](kind)
        parameters = {p.alias: p.field_info.annotation for p in self.dependant.query_params}
        repeated = {name for name, annotation in parameters.items() if "list" in str(annotation)}
        fields = [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        takes_body = schema is not None or self.dependant.request_param_name is not None

        async def answer(request: Request) -> Response:
            _check_query(request, parameters.keys(), repeated)
            if not takes_body and (request.headers.get("content-length", "0") != "0" or _is_chunked(request)):
                raise Invalid(f"{request.method} {path_of(request)} takes no body: send it without one")
            record = None
            if schema is not None and (text := await _read_json(request, self.max_body)):
                # In a thread: the largest bodies take seconds, in which the server answers others.
                record = await run_in_threadpool(_parse, request, schema, text, self.max_values, fields)
            response = await handler(_RecordRequest(request, record))
            if request.method == "GET" and response.status_code == 200 and "etag" not in response.headers:
                return await answer_conditionally(request, response)
            return response

        return answer


def _operation_id(route: APIRoute) -> str:
    return route.name


def _wrap_endpoint(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the endpoint so that it writes its record as JSON in its own thread.

    The framework would validate the record again in another thread, which takes a third of an answer's time.
    """
    writes = _writing(endpoint)
    if writes is None:
        return endpoint

    @functools.wraps(endpoint)
    def write(**arguments: Any) -> Response:
        return Response(writes(**arguments), media_type=_JSON)

    return write


def _writing(endpoint: Callable[..., Any]) -> Callable[..., bytes] | None:
    """Return a function that calls the endpoint and writes its record as JSON; None if it returns a response."""
    kind = inspect.signature(endpoint).return_annotation
    if kind is Response or inspect.iscoroutinefunction(endpoint):
        return None
    schema = TypeAdapter[Any](kind)
    return lambda **arguments: schema.dump_json(endpoint(**arguments))


def validators(etag: str, cache: str) -> dict[str, str]:
    """Return the headers that let a client cache an answer, for its own use only."""
    return {"ETag": etag, "Cache-Control": cache}


async def answer_conditionally(request: Request, response: Response, etag: str | None = None) -> Response:
    """Return a response with its ETag, or 304 if the client holds it; compress a large one if the client takes it."""
    body = bytes(response.body)
    etag = etag or f'"{hashlib.sha256(body).hexdigest()}"'
    headers = {}
    if len(body) >= LARGE:
        headers["Vary"] = "Accept-Encoding"
        if takes_gzip(request.scope["headers"]):
            etag = of_gzip(etag.encode()).decode()
            headers["Content-Encoding"] = "gzip"
    if unchanged(request, etag):
        headers.pop("Content-Encoding", None)
        return Response(status_code=304, headers=headers | validators(etag, REVALIDATE))
    if "Content-Encoding" in headers:
        response.body = await run_in_threadpool(compress, body)
        response.headers["Content-Length"] = str(len(response.body))
    response.headers.update(headers | validators(etag, REVALIDATE))
    return response


class _RecordRequest(Request):
    """A request with its body already parsed to a record, because the framework's own parsing is less strict."""

    def __init__(self, request: Request, record: object) -> None:
        super().__init__(request.scope, request.receive)
        self._record = record

    async def body(self) -> bytes:
        """Return any text if there is a record, so that the framework calls `json`."""
        return b"" if self._record is None else b"{}"

    async def json(self) -> Any:
        """Return the record."""
        return self._record


def _check_query(request: Request, known: Collection[str], repeated: Collection[str]) -> None:
    """Refuse a parameter that the route does not have, as a misspelt one would be ignored, and one that is twice."""
    names = [name for name, _ in request.query_params.multi_items()]
    for name in names:
        if name not in known:
            raise Invalid(
                f"{request.method} {path_of(request)} has no parameter {name[:80]!r}{nearest(name, known)}: it takes "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        if names.count(name) > 1 and name not in repeated:
            raise Invalid(f"the parameter {name!r} of {request.method} {path_of(request)} is given twice: give it once")


def _is_chunked(request: Request) -> bool:
    return "transfer-encoding" in request.headers


def _with_nearest(fault: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return a fault that names the field of the body that was probably meant."""
    if fault["type"] not in ("extra_forbidden", "unexpected_keyword_argument"):
        return fault
    if len(fault["loc"]) != 2:
        return {**fault, "msg": "no such field"}
    return {**fault, "msg": f"no such field{nearest(str(fault['loc'][1]), known)}, it takes {', '.join(sorted(known))}"}


async def _read_json(request: Request, limit: int) -> bytes:
    """Read the body of a request, empty if there is none.

    Only application/json is read: without the user's consent, a web page can send any other type here, or none.
    """
    body = await _read_bounded(request, limit)
    if body and request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise Invalid(
            f"the body of {request.method} {path_of(request)} is not JSON: send a JSON object as application/json"
        )
    return body


def _parse(request: Request, kind: TypeAdapter[Any], body: bytes, most: int, known: Collection[str]) -> object:
    """Parse the request's JSON into a record, strictly typed."""
    check_count(body, most, what=f"the body of {request.method} {path_of(request)}")
    try:
        record: object = _read_record(kind, body)
        parse_json(body)  # pydantic accepts a key given twice and takes the last; parse_json refuses it
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in list_faults(kind, body, error)]
        raise RequestValidationError([_with_nearest(fault, known) for fault in faults]) from None
    except ValueError as error:
        raise Invalid(f"the body of {request.method} {path_of(request)} may be read in two ways: {error}") from error
    return record


def _read_record(kind: TypeAdapter[Any], body: bytes) -> object:
    try:
        return kind.validate_json(body, strict=True)
    except ValidationError as error:
        if (written := with_whole_numbers(body, error)) is None:
            raise
    return kind.validate_json(written, strict=True)


async def _read_bounded(request: Request, limit: int) -> bytes:
    """Read the body, never more than `limit` bytes into memory. Raises HTTPException 413 for a larger body."""
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
