"""The bytes of versions, asked for by ref, so that they can be authorised."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loratree_registry.api.openapi import RefPath, refusals
from loratree_registry.api.strict_route import IMMUTABLE, REVALIDATE, Route, unchanged, validators
from loratree_registry.core.paths import is_digest, parse_ref
from loratree_registry.embedded.registry import EmbeddedRegistry

CHUNK = 256 * 1024

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=Route)

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file's bytes", "content": _BINARY},
    206: {"description": "Its bytes from the start of the range", "content": _BINARY},
    307: {"description": "Where the store serves the file's bytes"},
}
_UNKEPT = {"Cache-Control": "no-store"}  # whoever has the URL may read
_TO_THE_END = re.compile(r"bytes=([0-9]{1,18})-")
ByteRange = Annotated[str | None, Header(description="bytes=N-: from byte N, to go on where a download broke off")]
FileName = Annotated[str, Query(description="One of the version's files", examples=["adapter_model.safetensors"])]


async def _bytes(request: Request) -> EmbeddedRegistry:
    registry: EmbeddedRegistry = request.app.state.registry
    return registry


Bytes = Annotated[EmbeddedRegistry, Depends(_bytes)]


class FileResponse(StreamingResponse):
    """A stream that is closed however the answer ends, even where the client left before its first byte."""

    def __init__(self, stream: BinaryIO, opened: ExitStack, headers: dict[str, str]) -> None:
        status = 206 if "Content-Range" in headers else 200
        super().__init__(_chunks(stream), status, headers, media_type="application/octet-stream")
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        with self._opened:
            await super().__call__(scope, receive, send)


@router.get("/{ref:text}", response_class=StreamingResponse, responses=_ANSWERS | refusals(403, 404, 410))
def get_file(registry: Bytes, ref: RefPath, name: FileName, request: Request, range: ByteRange = None) -> Response:  # noqa: A002 - the header's name
    """One file of a version, or of a base's weights, as stored; its ETag is its digest, by which the reader checks it.

    Where the store serves its readers itself, this answers with where the file is: a URL good for 15 minutes.
    """
    file = registry.file(ref, name)
    headers = validators(f'"{file.sha256}"', _cache(ref))
    if unchanged(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    if registry.direct:
        return Response(status_code=307, headers=headers | {"Location": registry.direct.link(file)} | _UNKEPT)
    start = _start(range, file.size)
    headers |= {"Content-Length": str(file.size - start), "Accept-Ranges": "bytes", "X-Content-Type-Options": "nosniff"}
    if start:
        headers["Content-Range"] = f"bytes {start}-{file.size - 1}/{file.size}"
    opened = ExitStack()
    return FileResponse(opened.enter_context(registry.open_stored(file, start=start)), opened, headers)


def _start(asked: str | None, size: int) -> int:
    """Where to start; any other range than one to the end is answered with the whole file, as HTTP allows."""
    match = _TO_THE_END.fullmatch(asked or "")
    return int(match[1]) if match and int(match[1]) < size else 0


def _cache(ref: str) -> str:
    """A number or a digest names the same bytes for ever; a head or an alias moves."""
    selector = parse_ref(ref).selector
    return IMMUTABLE if isinstance(selector, int) or is_digest(selector) else REVALIDATE


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk
