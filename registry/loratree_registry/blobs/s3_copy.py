"""Copying within an S3 server, so that bytes travel once."""

from typing import Any, Final

from loratree_registry.blobs.s3_bucket import ABSENT, Bucket, Stored
from loratree_registry.blobs.s3_client import error_code, s3_errors
from loratree_registry.blobs.s3_multipart import Multipart
from loratree_registry.errors import Conflict, NotFound

_MAX_COPY: Final = 5 * 1024**3  # bytes that one copy_object takes
_COPY_PART: Final = 1024**3  # bytes a part of a larger copy; 640 GB are 640 requests


def copy(bucket: Bucket, stored: Stored, name: str) -> None:
    """Copies what has `stored`'s tag to `name`. Raises NotFound where it is gone, Conflict, Unavailable.

    A copy in parts that breaks off is left to `sweep`: what stopped it would stop its removal too.
    """
    source: dict[str, Any] = {"CopySource": bucket.at(stored.name), "CopySourceIfMatch": stored.etag}
    with s3_errors(bucket):
        try:
            if stored.size > _MAX_COPY:
                _copy_parts(bucket, source, stored.size, name)
            else:
                bucket.client.copy_object(**bucket.at(name), **source)
        except bucket.client.exceptions.ClientError as error:
            if error_code(error) == "PreconditionFailed":
                raise changed(stored) from error
            if error_code(error) not in ABSENT:
                raise
            raise NotFound(f"{bucket} holds no {stored.name}") from error


def changed(stored: Stored) -> Conflict:
    """The error of an object that was overwritten after it was hashed."""
    return Conflict(f"{stored.name} was sent again while it was hashed: wait until everything is sent")


def _copy_parts(bucket: Bucket, source: dict[str, Any], size: int, name: str) -> None:
    upload = Multipart.begin(bucket, name)
    starts = enumerate(range(0, size, _COPY_PART), 1)
    upload.complete({n: upload.copy(n, source, start, min(start + _COPY_PART, size)) for n, start in starts})
