"""An S3 multipart upload: an object made of numbered parts, which does not exist before it is completed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any

from loratree_registry.blobs.s3.bucket import Bucket
from loratree_registry.blobs.s3.client import error_code, s3_errors
from loratree_registry.core.times import in_utc
from loratree_registry.errors import NotFound

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_ENDED = ("404", "NoSuchUpload", "NoSuchKey")  # Ceph answers NoSuchKey


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part that arrived: its tag, its size in bytes, and when it arrived."""

    etag: str
    size: int
    modified: datetime


class Multipart:
    """A multipart upload of the object `name`; `id` is the server's id of the upload."""

    def __init__(self, bucket: Bucket, name: str, id: str) -> None:  # noqa: A002 - the field's name
        self._bucket, self.name, self.id = bucket, name, id

    @classmethod
    def begin(cls, bucket: Bucket, name: str) -> "Multipart":
        """Begin an upload. Raises Unavailable."""
        with s3_errors(bucket):
            return cls(bucket, name, bucket.client.create_multipart_upload(**bucket.at(name))["UploadId"])

    @property
    def at(self) -> dict[str, Any]:
        """The arguments by which boto3 finds the upload."""
        return self._bucket.at(self.name) | {"UploadId": self.id}

    def put(self, number: int, body: IO[bytes]) -> str:
        """Send a part and return its tag. Raises NotFound if the upload was completed or aborted, ClientError."""
        try:
            return self._bucket.client.upload_part(**self.at, PartNumber=number, Body=body)["ETag"]
        except self._bucket.client.exceptions.ClientError as error:
            if error_code(error) not in _ENDED:
                raise
            raise self._ended() from error

    def parts(self) -> dict[int, StoredPart]:
        """Return the parts that arrived. Raises NotFound if the upload was completed or aborted, Unavailable."""
        with self._raise_if_ended():
            pages = self._bucket.client.get_paginator("list_parts").paginate(**self.at)
            return {
                part["PartNumber"]: StoredPart(str(part["ETag"]), part["Size"], in_utc(part["LastModified"]))
                for page in pages
                for part in page.get("Parts", [])
            }

    def complete(self, tags: Mapping[int, str]) -> None:
        """Create the object from the parts with these tags. Raises NotFound, Unavailable."""
        parts: list[CompletedPartTypeDef] = [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]
        with self._raise_if_ended():
            self._bucket.client.complete_multipart_upload(**self.at, MultipartUpload={"Parts": parts})

    def abort(self) -> None:
        """Remove the upload and its parts. Raises NotFound, Unavailable."""
        with self._raise_if_ended():
            self._bucket.client.abort_multipart_upload(**self.at)

    @contextmanager
    def _raise_if_ended(self) -> Iterator[None]:
        with s3_errors(self._bucket):
            try:
                yield
            except self._bucket.client.exceptions.ClientError as error:
                if error_code(error) not in _ENDED:
                    raise
                raise self._ended() from error

    def _ended(self) -> NotFound:
        return NotFound(f"{self._bucket} has no multipart upload of {self.name} any more: begin a new one")
