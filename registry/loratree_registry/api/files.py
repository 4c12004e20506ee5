"""The bytes of versions, asked for by ref, so that they can be authorised."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loratree_registry.api.documented import Catalog, RefPath, refusals
from loratree_registry.api.route import IMMUTABLE, REVALIDATE, Route, unchanged, validators
from loratree_registry.paths import is_digest, parse_ref

CHUNK = 256 * 1024

router = APIRouter(prefix="/v1/files", tags=["files"], route_class=Route)

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {200: {"description": "The file's bytes", "content": _BINARY}}
FileName = Annotated[str, Query(description="One of the version's files", examples=["adapter_model.safetensors"])]


class FileResponse(StreamingResponse):
    """A stream that is closed however the answer ends, even where the client left before its first byte."""

    def __init__(self, stream: BinaryIO, opened: ExitStack, headers: dict[str, str]) -> None:
        super().__init__(_chunks(stream), headers=headers, media_type="application/octet-stream")
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        with self._opened:
            await super().__call__(scope, receive, send)


@router.get("/{ref:text}", response_class=StreamingResponse, responses=_ANSWERS | refusals(404))
def get_file(registry: Catalog, ref: RefPath, name: FileName, request: Request) -> Response:
    """One file of a version, as stored; its ETag is its digest, by which the reader checks the bytes."""
    version = registry.version(ref)
    file = next((file for file in version.files if file.name == name), None)
    if file is None:
        source, headers = ref, {}  # opening it raises, with the registry's own sentence
    else:
        source = f"{version.path}@{version.number}"  # an alias may move between the two calls
        headers = validators(f'"{file.sha256}"', _cache(ref))
        if unchanged(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        headers |= {"Content-Length": str(file.size), "X-Content-Type-Options": "nosniff"}
    opened = ExitStack()
    return FileResponse(opened.enter_context(registry.open_file(source, name)), opened, headers)


def _cache(ref: str) -> str:
    """A number or a digest names the same bytes for ever; a head or an alias moves."""
    selector = parse_ref(ref).selector
    return IMMUTABLE if isinstance(selector, int) or is_digest(selector) else REVALIDATE


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK):
        yield chunk
