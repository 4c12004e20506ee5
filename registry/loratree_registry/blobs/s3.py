"""Blobs in an S3 bucket: prefix/sha256/ab/<64 hexadecimal digits>."""

import io
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from loratree_registry.addresses import shown
from loratree_registry.blobs.disk import disk_errors
from loratree_registry.blobs.s3_client import error_code, open_client, s3_errors
from loratree_registry.blobs.store import ReadBack
from loratree_registry.blobs.verified import CHUNK, check_announced, read_through, verified
from loratree_registry.canonical import DIGEST_PREFIX
from loratree_registry.errors import NotFound, Unavailable

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client

MAX_OBJECT = 5 * 1024**3  # what one put_object takes
_TRIES = 5  # a 409 tells of another writer at the key: 0.05 s, then doubling, 1.55 s in all
_ABSENT = ("404", "NoSuchKey")
_EXISTS = "PreconditionFailed"
_CONTENDED = "ConditionalRequestConflict"


class S3BlobStore:
    """A blob store in a bucket; credentials and region come from the environment, as boto3 finds them.

    Integrity never rests on the server, as several accept a wrong checksum: what is stored is read back and hashed.
    """

    def __init__(self, bucket: str, prefix: str = "", *, endpoint: str | None = None) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.endpoint = endpoint
        self._opening = threading.Lock()

    def __str__(self) -> str:
        at = f" at {shown(self.endpoint)}" if self.endpoint else ""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/") + at

    def put(self, digest: str, size: int, stream: BinaryIO, *, read_back: ReadBack | None = None) -> None:
        """Stores `stream`, spooled to a temporary file, by one conditional put. See BlobStore.put."""
        check_announced(digest, size)
        if size > MAX_OBJECT:
            raise Unavailable(f"{self} takes at most {MAX_OBJECT} bytes a blob, {digest} has {size}")
        with _spooled(stream, digest, size) as file:
            self._store(digest, size, file, read_back)

    @contextmanager
    def open(self, digest: str) -> Iterator[BinaryIO]:
        """Opens a blob for reading, as stored; the stream cannot seek. Raises NotFound, Unavailable."""
        with io.BufferedReader(_BodyReader(self, self._body(digest)), CHUNK) as stream:
            yield stream

    def size(self, digest: str) -> int | None:
        """The stored size in bytes, None where there is no such blob. Raises Unavailable."""
        with s3_errors(self):
            try:
                return self._client.head_object(Bucket=self.bucket, Key=self._key(digest))["ContentLength"]
            except self._client.exceptions.ClientError as error:
                if error_code(error) not in _ABSENT:
                    raise
            self._client.head_bucket(
                Bucket=self.bucket
            )  # the answer to a HEAD does not tell which of the two is absent
            return None

    def delete(self, digest: str) -> None:
        """Removes a blob; one that is not there is no error. Raises Unavailable."""
        with s3_errors(self):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(digest))

    def close(self) -> None:
        """Closes the connections, if any were opened."""
        if "_client" in self.__dict__:
            self._client.close()

    @cached_property
    def _client(self) -> "S3Client":
        with self._opening:  # boto3's session is not for threads; its clients are
            return open_client(self.endpoint)

    def _key(self, digest: str) -> str:
        check_announced(digest, 0)
        name = digest.removeprefix(DIGEST_PREFIX)
        return f"{self.prefix}/sha256/{name[:2]}/{name}".lstrip("/")

    def _body(self, digest: str) -> "StreamingBody":
        with s3_errors(self):
            try:
                return self._client.get_object(Bucket=self.bucket, Key=self._key(digest))["Body"]
            except self._client.exceptions.ClientError as error:
                if error_code(error) not in _ABSENT:
                    raise
                raise NotFound(f"{self} holds no blob {digest}") from error

    def _store(self, digest: str, size: int, file: IO[bytes], read_back: ReadBack | None) -> None:
        created = self._put_object(digest, file, IfNoneMatch="*")
        if self._holds(digest, size, read_back):
            return
        if not created:  # the key exists and holds other bytes: "exists" was never "correct"
            self._put_object(digest, file)
            if self._holds(digest, size, read_back):
                return
        self.delete(digest)
        raise Unavailable(f"{self} gave back other bytes than were written as {digest}: check that server")

    def _put_object(self, digest: str, file: IO[bytes], **condition: Any) -> bool:
        """Tells whether the object was written; False where the condition says that the key exists."""
        checksum = b64encode(bytes.fromhex(digest.removeprefix(DIGEST_PREFIX))).decode()
        with s3_errors(self):
            for attempt in range(_TRIES):
                file.seek(0)
                try:
                    self._client.put_object(
                        Bucket=self.bucket, Key=self._key(digest), Body=file, ChecksumSHA256=checksum, **condition
                    )
                except self._client.exceptions.ClientError as error:
                    if error_code(error) == _EXISTS:
                        return False
                    if error_code(error) != _CONTENDED:
                        raise
                    time.sleep(0.05 * 2**attempt)
                else:
                    return True
        raise Unavailable(f"{self} had another writer at {digest} {_TRIES} times: try again")

    def _holds(self, digest: str, size: int, read_back: ReadBack | None) -> bool:
        try:
            with self.open(digest) as stream:
                return read_through(stream, read_back) == (digest, size)
        except NotFound:
            return False


@contextmanager
def _spooled(stream: BinaryIO, digest: str, size: int) -> Iterator[IO[bytes]]:
    """The stream's bytes in a file without a name, which a retried put can read again."""
    with ExitStack() as opened:
        with disk_errors(Path(tempfile.gettempdir()), "TMPDIR", needs=size):
            file = opened.enter_context(tempfile.TemporaryFile())
            for chunk in verified(stream, digest, size):
                file.write(chunk)
            file.flush()
        yield file


class _BodyReader(io.RawIOBase):
    """A response's body as a file, whose failures are Unavailable."""

    def __init__(self, store: S3BlobStore, body: "StreamingBody") -> None:
        self._store, self._body = store, body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with s3_errors(self._store):
            chunk = self._body.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._body.close()
        super().close()
