"""Bytes on their way in: announce, send, complete."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from loratree_registry.api import examples
from loratree_registry.api.bodies import NewUpload, Stored, Upload
from loratree_registry.api.documented import Catalog, answers, body
from loratree_registry.api.route import Route
from loratree_registry.api.staging import Staging
from loratree_registry.errors import Invalid

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=Route)

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


async def _staging(request: Request) -> Staging:
    staging: Staging = request.app.state.staging
    return staging


Incoming = Annotated[Staging, Depends(_staging)]
UploadId = Annotated[str, Path(description="The upload's id", examples=[examples.UPLOAD_ID])]


@router.post("", status_code=201, responses=answers(examples.UPLOAD, status=201, says="An upload to send"))
def begin_upload(staging: Incoming, upload: Annotated[NewUpload, body(examples.NEW_UPLOAD)]) -> Upload:
    """Announces bytes by digest and size; they are asked for even where they are stored already."""
    name = staging.begin(upload)
    return Upload(id=name, href=f"/v1/uploads/{name}/content")


@router.put(
    "/{id}/content",
    status_code=204,
    responses=answers(None, 404, 409, status=204),
    openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
)
async def send_content(staging: Incoming, id: UploadId, request: Request) -> None:  # noqa: A002 - the field's name
    """Sends the bytes, exactly as many as announced; what is longer or shorter is refused and forgotten."""
    _check_length(request.headers.get("content-length"), staging.announced(id).size)
    with staging.receive(id) as content:
        try:
            async for chunk in request.stream():
                await run_in_threadpool(content.write, chunk)
        except ClientDisconnect as error:
            raise Invalid("the content was cut off while it was sent: send it again") from error


@router.post("/{id}/complete", responses=answers(examples.STORED, 404, 409))
def complete_upload(registry: Catalog, staging: Incoming, id: UploadId) -> Stored:  # noqa: A002 - the field's name
    """Verifies the bytes and stores them under their digest; only then can a version name them."""
    with staging.claim(id) as (upload, stream):
        registry.upload(stream, sha256=upload.sha256, size=upload.size)
    return Stored(sha256=upload.sha256, size=upload.size)


def _check_length(declared: str | None, size: int) -> None:
    """Refuses a wrong size before a byte of it is read; without a declared length, the stream is counted."""
    if declared is not None and declared != str(size):
        raise Invalid(f"the content sent has {declared} bytes, {size} were announced: announce its size")
