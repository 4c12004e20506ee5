"""The route of files: bytes are requested by ref, never by digest, so that access can be authorised."""

import logging
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loratree_registry.api.host_guard import HEAD
from loratree_registry.api.openapi import RefPath, refusals
from loratree_registry.api.plain_reads import REVALIDATE, unchanged
from loratree_registry.api.strict_route import IMMUTABLE, Route, validators
from loratree_registry.core.paths import is_digest, parse_ref
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import LoratreeError

CHUNK = 256 * 1024
_LOG = logging.getLogger("uvicorn.error")  # the log that the server's own lines go to

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=Route)

_BYTES = "application/octet-stream"
_BINARY = {_BYTES: {"schema": {"type": "string", "format": "binary"}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file's bytes", "content": _BINARY},
    206: {"description": "The file's bytes from the start of the range", "content": _BINARY},
    307: {"description": "Where the store serves the file's bytes"},
}
_NO_STORE = {"Cache-Control": "no-store"}  # anybody who has the URL may read the file
_TO_THE_END = re.compile(r"bytes=([0-9]{1,18})-")
ByteRange = Annotated[str | None, Header(description="bytes=N-: start at byte N, to resume a broken download")]
IfRange = Annotated[
    str | None, Header(description="Take the range only if the file still has this ETag; else the answer is all of it")
]
FileName = Annotated[str, Query(description="One of the version's files", examples=["adapter_model.safetensors"])]


async def _get_registry(request: Request) -> EmbeddedRegistry:
    registry: EmbeddedRegistry = request.app.state.registry
    return registry


Bytes = Annotated[EmbeddedRegistry, Depends(_get_registry)]


class FileResponse(StreamingResponse):
    """A response that always closes its stream, even if the client leaves before the first byte."""

    def __init__(self, stream: BinaryIO, opened: ExitStack, headers: dict[str, str]) -> None:
        status = 206 if "Content-Range" in headers else 200
        try:
            first = stream.read(CHUNK)  # a disk that fails at once is told by its own answer
        except BaseException:
            opened.close()
            raise
        super().__init__(_read_chunks(first, stream), status, headers, media_type=_BYTES)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then close it; if a read fails on the way, log why and break the connection off."""
        with self._opened:
            try:
                await super().__call__(scope, receive, send)
            except LoratreeError as error:  # the answer has begun, so its status can tell nothing any more
                _LOG.error("an answer of %s was broken off: %s", scope["path"], error)


@router.get("/{ref:text}", response_class=StreamingResponse, responses=_ANSWERS | refusals(403, 404, 410))
def get_file(
    registry: Bytes,
    ref: RefPath,
    name: FileName,
    request: Request,
    range: ByteRange = None,  # noqa: A002 - the header's name
    if_range: IfRange = None,
) -> Response:
    """Return one stored file of a version or of a base's weights; the ETag is its digest, for the reader to check.

    If the store serves readers directly, the answer redirects to a URL of the store that is valid for 15 minutes.
    """
    file = registry.file(ref, name)
    headers = validators(f'"{file.sha256}"', _choose_cache(ref))
    if unchanged(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    asks_headers = HEAD in request.scope
    if asks_headers:
        range = None  # noqa: A001 - a range is of a GET alone
    is_other = range is not None and if_range is not None and if_range != headers["ETag"]
    if registry.direct and not is_other:  # the store knows its own ETags only: it could not compare If-Range
        link = registry.direct.link(file, head=asks_headers)
        return Response(status_code=307, headers=headers | {"Location": link} | _NO_STORE)
    start = 0 if is_other else _parse_start(range, file.size)
    headers |= {"Content-Length": str(file.size - start), "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
    if start:
        headers["Content-Range"] = f"bytes {start}-{file.size - 1}/{file.size}"
    if asks_headers:
        registry.check_held(file)
        return Response(headers=headers, media_type=_BYTES)
    opened = ExitStack()
    return FileResponse(opened.enter_context(registry.open_stored(file, start=start)), opened, headers)


def _parse_start(asked: str | None, size: int) -> int:
    """Return the first byte of a range to the end; for any other range return 0, the whole file, as HTTP allows."""
    match = _TO_THE_END.fullmatch(asked or "")
    return int(match[1]) if match and int(match[1]) < size else 0


def _choose_cache(ref: str) -> str:
    """Choose the cache header: a number or a digest always names the same bytes; a head or an alias moves."""
    selector = parse_ref(ref).selector
    return IMMUTABLE if isinstance(selector, int) or is_digest(selector) else REVALIDATE


def _read_chunks(first: bytes, stream: BinaryIO) -> Iterator[bytes]:
    chunk = first
    while chunk:
        yield chunk
        chunk = stream.read(CHUNK)
