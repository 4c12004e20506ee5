"""The objects under one prefix of an S3 bucket, by name; every error is one sentence."""

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from loratree_registry.blobs.s3.client import error_code, not_s3, open_client, s3_errors
from loratree_registry.blobs.verified import CHUNK
from loratree_registry.core.text import without_secrets
from loratree_registry.core.times import in_utc
from loratree_registry.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CopySourceTypeDef

_PAGE: Final = 1000  # objects in one listing, the most that S3 gives
BLOBS: Final = "sha256/"  # the folder of blobs, by digest
ABSENT: Final = ("404", "NoSuchKey")
COPY_PART: Final = 256 * 1024**2  # bytes in one request: some servers copy byte by byte, and more takes too long
_TOGETHER: Final = 8  # requests at the same time


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object on the server: the tag of its bytes, its size in bytes, and when it was written."""

    name: str
    etag: str
    size: int
    modified: datetime


class Bucket:
    """A bucket's objects under `prefix`; boto3 finds credentials and region in the environment."""

    def __init__(self, name: str, prefix: str, endpoint: str | None, public_endpoint: str | None) -> None:
        """`public_endpoint` is the address at which clients reach the server, if it is not `endpoint`."""
        self.name, self.prefix = name, prefix.strip("/")
        self.endpoint, self._public = endpoint, public_endpoint
        self._opening = threading.Lock()

    def __str__(self) -> str:
        at = f" at {without_secrets(self.endpoint)}" if self.endpoint else ""
        return f"s3://{self.name}/{self.prefix}".rstrip("/") + at

    @cached_property
    def client(self) -> "S3Client":
        """The client for most requests. Raises Unavailable if boto3 is missing, Invalid."""
        with self._opening:  # boto3's session is not thread-safe; its clients are
            return open_client(self.endpoint)

    @cached_property
    def signer(self) -> "S3Client":
        """The client that signs URLs."""
        if not self._public:
            return self.client
        with self._opening:
            return open_client(self._public, "LORATREE_S3_PUBLIC_ENDPOINT")

    @cached_property
    def brief(self) -> "S3Client":
        """The client for requests during which a database lock is held; it gives up within 30 s."""
        with self._opening:
            return open_client(self.endpoint, brief=True)

    def at(self, name: str) -> dict[str, Any]:
        """Return the arguments by which boto3 finds an object."""
        return {"Bucket": self.name, "Key": self.key(name)}

    def key(self, name: str) -> str:
        """Return the key of a name under the prefix."""
        return f"{self.prefix}/{name}".lstrip("/")

    def below(self, key: str) -> str:
        """Return the name, without the prefix, of a key."""
        return key.removeprefix(f"{self.prefix}/")

    def head(self, name: str) -> StoredObject | None:
        """Return the server's record of an object, or None if there is no such object. Raises Unavailable."""
        with s3_errors(self):
            try:
                answer = self.client.head_object(**self.at(name))
            except self.client.exceptions.ClientError as error:
                if error_code(error) not in ABSENT:
                    raise
            else:
                return _to_object(name, answer)
            self.client.head_bucket(Bucket=self.name)  # raises if the bucket is missing: a HEAD's 404 does not say
            return None

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[StoredObject, BinaryIO]]:
        """Open an object for reading forward. Raises NotFound, Unavailable."""
        with s3_errors(self):
            try:
                answer = self.client.get_object(**self.at(name))
            except self.client.exceptions.ClientError as error:
                if error_code(error) not in ABSENT:
                    raise
                raise NotFound(f"{self} holds no {name}") from error
            body = answer["Body"]
        with io.BufferedReader(_Body(self, body), CHUNK) as stream:
            with s3_errors(self):
                stored = _to_object(name, answer)
            yield stored, stream

    def delete(self, name: str, *, brief: bool = False) -> None:
        """Remove an object; a missing object is no error. `brief` gives up within 30 s. Raises Unavailable."""
        with s3_errors(self):
            (self.brief if brief else self.client).delete_object(**self.at(name))

    def copy(self, source: str, name: str, size: int) -> None:
        """Copy the `size` bytes of `source` to `name` inside the server, a large object in parts.

        Raises NotFound if the source is missing, or if a copy in parts has succeeded and the server's answer was lost;
        Unavailable. If the process is killed, `sweep` removes the parts of the copy.
        """
        place: CopySourceTypeDef = {"Bucket": self.name, "Key": self.key(source)}
        with s3_errors(self):
            try:
                if size <= COPY_PART:  # boto3's managed copy would ask for the size first
                    self.client.copy_object(**self.at(name), CopySource=place)
                else:
                    self.client.copy(place, **self.at(name), Config=_build_config())
            except self.client.exceptions.ClientError as error:
                if error_code(error) not in (*ABSENT, "NoSuchUpload"):  # NoSuchUpload: done, answer lost
                    raise
                raise NotFound(f"{self} holds no {source}") from error

    def list(self, folder: str, *, after: str = "") -> Iterator[StoredObject]:
        """Yield the objects of a folder in order of their keys, a page at a time. Raises Unavailable."""
        at, start = self.key(folder), self.key(after) if after else ""
        while True:
            with s3_errors(self):
                page = self.client.list_objects_v2(Bucket=self.name, Prefix=at, StartAfter=start, MaxKeys=_PAGE)
                found = [(str(item["Key"]), item) for item in page.get("Contents", [])]
                objects = [_to_object(self.below(key), item, size="Size") for key, item in found]
                last, is_last = max((key for key, _ in found), default=start, key=str.encode), not page["IsTruncated"]
            if not is_last and last.encode() <= start.encode():
                raise Unavailable(not_s3(self, "a listing that goes on and names nothing new"))
            yield from objects
            if is_last:
                return
            start = last

    def close(self) -> None:
        """Close the connections, if any were opened."""
        for client in ("client", "signer", "brief"):
            if client in self.__dict__:
                self.__dict__[client].close()


def _to_object(name: str, answer: Mapping[str, Any], *, size: str = "ContentLength") -> StoredObject:
    """Return the object that an answer describes. Raises ValueError, KeyError or TypeError if it describes none."""
    modified: object = answer["LastModified"]
    if not isinstance(modified, datetime) or answer[size] < 0:
        raise ValueError(f"{name} has the time {modified!r} and the size {answer[size]!r}")
    return StoredObject(name, str(answer["ETag"]), answer[size], in_utc(modified))


def _build_config() -> "TransferConfig":
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=COPY_PART, multipart_chunksize=COPY_PART, max_concurrency=_TOGETHER)


class _Body(io.RawIOBase):
    """A response's body as a file; a failure to read it raises Unavailable."""

    def __init__(self, bucket: Bucket, body: "StreamingBody") -> None:
        self._bucket, self._body = bucket, body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with s3_errors(self._bucket):
            chunk = self._body.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._body.close()
        super().close()
