"""Copying within an S3 server, so that bytes travel once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Final

from loratree_registry.blobs.s3_bucket import ABSENT, Bucket
from loratree_registry.blobs.s3_client import error_code, s3_errors
from loratree_registry.blobs.s3_multipart import Multipart
from loratree_registry.errors import NotFound

_COPY_PART: Final = 256 * 1024**2  # bytes a request: some servers copy byte by byte; 640 GB are 2,500 requests
_TOGETHER: Final = 8  # requests at once


def copy(bucket: Bucket, source: str, name: str, size: int) -> None:
    """Copies the `size` bytes of `source` to `name`. Raises NotFound where they are gone, Unavailable.

    A copy in parts that breaks off is left to `sweep`: what stopped it would stop its removal too.
    """
    with s3_errors(bucket):
        try:
            if size > _COPY_PART:
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
    starts = range(0, size, _COPY_PART)

    def copied(start: int) -> str:
        return upload.copy(1 + start // _COPY_PART, source, start, min(start + _COPY_PART, size))

    with ThreadPoolExecutor(_TOGETHER) as pool:
        tags = list(pool.map(copied, starts))
    upload.complete(dict(enumerate(tags, 1)))
