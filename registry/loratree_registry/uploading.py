"""Sending bytes in parts to whoever takes them; what has arrived is not sent again."""

import time
from dataclasses import dataclass, field
from typing import IO, BinaryIO, Final, Protocol

from loratree_registry.blobs.sending import Sending, sending
from loratree_registry.errors import Invalid, NotFound, Unavailable

LIFETIME_S: Final = 24 * 3600  # how long an upload can be gone on with
_TRIES = 3
_PAUSE_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Where to PUT one part, numbered from 1, and the headers to send exactly so.

    `url` is a path of this server, or the presigned URL of another, good for 15 minutes.
    """

    number: int
    url: str = field(repr=False)  # whoever reads a presigned one may write
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Bytes on their way in, in `parts` parts of `part_size` bytes, the last one what is left of them.

    `arrived` are the parts that are there whole; `next` is where the first of the others goes, null where none is left.
    """

    id: str
    sha256: str
    size: int
    part_size: int
    parts: int
    arrived: list[int]
    next: Part | None


class Uploads(Protocol):
    """What takes uploads. Each method raises NotFound for an id that it did not give, or no longer knows."""

    def begin(self, sha256: str, size: int) -> Upload:
        """Announces bytes; of several parts, an upload of the same bytes that was begun already goes on."""
        ...

    def find(self, id: str) -> Upload:  # noqa: A002 - the field's name
        """An upload as it stands."""
        ...

    def part(self, id: str, number: int) -> Part:  # noqa: A002 - the field's name
        """Where to send one part. Raises Invalid where the upload has no such part."""
        ...

    def complete(self, upload: Upload) -> None:
        """Verifies what arrived and stores it. Raises Conflict where parts are missing, Invalid for other bytes."""
        ...

    def give_up(self, id: str) -> None:  # noqa: A002 - the field's name
        """Removes an upload and what arrived of it."""
        ...


class ClientUploads(Uploads, Protocol):
    """Uploads whose parts this process sends itself."""

    def put(self, id: str, part: Part, content: IO[bytes]) -> None:  # noqa: A002 - the field's name
        """Send the bytes of one part. Raises Unavailable, after which it may be called again; Invalid."""
        ...


def send(uploads: ClientUploads, stream: BinaryIO, *, sha256: str, size: int) -> None:
    """Sends `stream` from where it lies, as far as it has not arrived, and completes the upload.

    Another client may have sent parts of it, wrong ones even, or ended it meanwhile: then it is begun anew, once.
    Raises Invalid where the stream holds other bytes, Unavailable.
    """
    source, again = sending(stream, sha256, size), stream.seekable()
    upload = uploads.begin(sha256, size)
    try:
        _send(uploads, source, upload)
    except (Invalid, NotFound) as error:
        if isinstance(error, Invalid):
            source.check()  # tells whose fault it is
        if not again or (isinstance(error, Invalid) and not upload.arrived):
            raise
        _send(uploads, source, uploads.begin(sha256, size))


def _send(uploads: ClientUploads, source: Sending, upload: Upload) -> None:
    for number, part in enumerate(source.parts(), 1):
        if number not in upload.arrived:
            _put(uploads, upload, number, part)
    uploads.complete(upload)


def _put(uploads: ClientUploads, upload: Upload, number: int, part: IO[bytes]) -> None:
    """Sends one part, again where that failed; each time to a new URL, as they run out."""
    target = upload.next if upload.next and upload.next.number == number else uploads.part(upload.id, number)
    for attempt in range(1, _TRIES):
        try:
            return uploads.put(upload.id, target, part)
        except Unavailable:
            time.sleep(_PAUSE_S * attempt)
        part.seek(0)
        target = uploads.part(upload.id, number)
    return uploads.put(upload.id, target, part)


def unknown_upload(id: str) -> NotFound:  # noqa: A002 - the field's name
    """The sentence for an upload that is not there."""
    return NotFound(f"there is no upload {id[:64]!r}: it was completed, refused, or left for a day; begin another")
