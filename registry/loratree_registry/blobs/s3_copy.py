"""Copying within an S3 server, so that bytes travel once."""

from typing import Final

from loratree_registry.blobs.s3_bucket import ABSENT, Bucket
from loratree_registry.blobs.s3_client import error_code, s3_errors
from loratree_registry.blobs.s3_multipart import Multipart
from loratree_registry.errors import NotFound

_MAX_COPY: Final = 5 * 1024**3  # bytes that one copy_object takes
_COPY_PART: Final = 1024**3  # bytes a part of a larger copy; 640 GB are 640 requests


def copy(bucket: Bucket, source: str, name: str, size: int) -> None:
    """Copies the `size` bytes of `source` to `name`. Raises NotFound where they are gone, Unavailable.

    A copy in parts that breaks off is left to `sweep`: what stopped it would stop its removal too.
    """
    with s3_errors(bucket):
        try:
            if size > _MAX_COPY:
                _copy_parts(bucket, source, name, size)
            else:
                bucket.client.copy_object(
                    **bucket.at(name), CopySource={"Bucket": bucket.name, "Key": bucket.key(source)}
                )
        except bucket.client.exceptions.ClientError as error:
            if error_code(error) not in ABSENT:
                raise
            raise NotFound(f"{bucket} holds no {source}") from error


def _copy_parts(bucket: Bucket, source: str, name: str, size: int) -> None:
    upload = Multipart.begin(bucket, name)
    starts = enumerate(range(0, size, _COPY_PART), 1)
    upload.complete({n: upload.copy(n, source, start, min(start + _COPY_PART, size)) for n, start in starts})
