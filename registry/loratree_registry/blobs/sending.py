"""Uploads in parts: a part that has arrived is not sent again."""

import time
from typing import IO, BinaryIO

from loratree_registry.blobs.parts import Sending, sending
from loratree_registry.core.uploads import ClientUploads, Upload
from loratree_registry.errors import Invalid, NotFound, Unavailable

_TRIES = 3

_PAUSE_S = 0.2


def send(uploads: ClientUploads, stream: BinaryIO, *, sha256: str, size: int) -> None:
    """Send the parts of `stream` that have not arrived, and complete the upload.

    Another client may have sent wrong parts or ended the upload; then this client begins it again, once.
    Raises Invalid if the stream holds other bytes than announced, Unavailable.
    """
    source, can_retry = sending(stream, sha256, size), stream.seekable()
    upload = uploads.begin(sha256, size)
    try:
        _send(uploads, source, upload)
    except (Invalid, NotFound) as error:
        if isinstance(error, Invalid):
            source.check()  # raises if the fault is in the stream, not in parts of another client
        if not can_retry or (isinstance(error, Invalid) and not upload.arrived):
            raise
        _send(uploads, source, uploads.begin(sha256, size))


def _send(uploads: ClientUploads, source: Sending, upload: Upload) -> None:
    for number, part in enumerate(source.parts(), 1):
        if number not in upload.arrived:
            _put(uploads, upload, number, part)
    uploads.complete(upload)


def _put(uploads: ClientUploads, upload: Upload, number: int, part: IO[bytes]) -> None:
    """Send one part, with retries; each retry gets a new URL, because URLs expire."""
    target = upload.next if upload.next and upload.next.number == number else uploads.part(upload.id, number)
    for attempt in range(1, _TRIES):
        try:
            return uploads.put(upload.id, target, part)
        except Unavailable:
            time.sleep(_PAUSE_S * attempt)
        part.seek(0)
        target = uploads.part(upload.id, number)
    return uploads.put(upload.id, target, part)
