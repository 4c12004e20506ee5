"""Routes of uploads: announce the bytes, send them part by part, complete."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from loratree_registry.api import examples
from loratree_registry.api.openapi import answers, body
from loratree_registry.api.strict_route import Route
from loratree_registry.core.uploads import Part, Upload, Uploads
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.embedded.staged_uploads import StagedUploads
from loratree_registry.errors import Conflict, Invalid
from loratree_registry.wire.bodies import NewUpload, Stored


class UploadRoute(Route):
    """A route with answers that may hold presigned URLs, so no cache may store them."""

    is_quick = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the handler so that every answer is marked no-store."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            response = await handler(request)
            response.headers["Cache-Control"] = "no-store"
            return response

        return answer


router = APIRouter(prefix="/v1/uploads", tags=["uploads"], route_class=UploadRoute)

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


UploadId = Annotated[str, Path(description="The upload's id", examples=[examples.UPLOAD_ID])]


async def _choose_uploads(request: Request) -> Uploads:
    """Choose where uploads go: directly to the store, or through this server's staging folder."""
    registry: EmbeddedRegistry = request.app.state.registry
    return registry.direct or StagedUploads(request.app.state.staging, registry.upload)


async def _require_staging(uploads: Annotated[Uploads, Depends(_choose_uploads)], id: UploadId) -> StagedUploads:  # noqa: A002 - the field's name
    if not isinstance(uploads, StagedUploads):
        await run_in_threadpool(uploads.find, id)  # raises NotFound if there is no such upload
        raise Conflict("this registry takes no parts itself: send each part to the URL that the upload gives")
    return uploads


Incoming = Annotated[Uploads, Depends(_choose_uploads)]
Number = Annotated[int, Path(description="The part's number, from 1", examples=[1])]


@router.post("", status_code=201, responses=answers(examples.UPLOAD, status=201, says="An upload to send"))
def begin_upload(uploads: Incoming, upload: Annotated[NewUpload, body(examples.NEW_UPLOAD)]) -> Upload:
    """Announce bytes by digest and size, or continue a multi-part upload of the same bytes, begun by any client.

    The bytes must be sent even if they are stored already.
    """
    return uploads.begin(upload.sha256, upload.size)


@router.get("/{id}", responses=answers(examples.UPLOAD, 404))
def get_upload(uploads: Incoming, id: UploadId) -> Upload:  # noqa: A002 - the field's name
    """Return the state of an upload: the parts that have arrived, and where to send the next one."""
    return uploads.find(id)


@router.get("/{id}/parts/{number}", responses=answers(examples.PART, 404))
def get_part(uploads: Incoming, id: UploadId, number: Number) -> Part:  # noqa: A002 - the field's name
    """Return the URL to PUT one part to, and the headers to send."""
    return uploads.part(id, number)


@router.put(
    "/{id}/parts/{number}",
    status_code=204,
    responses=answers(None, 404, 409, status=204),
    openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
)
async def send_part(
    staging: Annotated[StagedUploads, Depends(_require_staging)],
    id: UploadId,  # noqa: A002 - the field's name
    number: Number,
    request: Request,
) -> None:
    """Send a part through this server; a wrong length is refused, and a part sent again replaces the first."""
    _check_length(request.headers.get("content-length"), staging.length(id, number))
    with staging.receive(id, number) as content:
        try:
            async for chunk in request.stream():
                await run_in_threadpool(content.write, chunk)
        except ClientDisconnect as error:
            raise Invalid("the content was cut off while it was sent: send it again") from error


@router.post("/{id}/complete", responses=answers(examples.STORED, 404, 409))
def complete_upload(uploads: Incoming, id: UploadId) -> Stored:  # noqa: A002 - the field's name
    """Verify the bytes and store them under their digest; only then can a version name them."""
    upload = uploads.find(id)
    uploads.complete(upload)
    return Stored(sha256=upload.sha256, size=upload.size)


@router.delete("/{id}", status_code=204, responses=answers(None, 404, 409, status=204))
def give_up_upload(uploads: Incoming, id: UploadId) -> None:  # noqa: A002 - the field's name
    """Remove an upload and the parts that have arrived."""
    uploads.give_up(id)


def _check_length(declared: str | None, size: int) -> None:
    """Refuse a wrong declared size before any byte is read; without one, the stream itself is counted."""
    if declared is not None and declared != str(size):
        raise Invalid(f"the content sent has {declared} bytes, {size} were announced: announce its size")
