"""A staged object under `uploads/`: bytes that are arriving or have arrived, and that are not hashed yet."""

import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Final
from uuid import uuid4

from loratree_registry.blobs.parts import Sending
from loratree_registry.blobs.s3.bucket import Bucket
from loratree_registry.blobs.s3.client import error_code, s3_errors
from loratree_registry.blobs.s3.multipart import Multipart
from loratree_registry.blobs.store import LINK_S, PART, Target, Transfer
from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.errors import Conflict, Invalid, LoratreeError, NotFound, Unavailable, listed

FOLDER: Final = "uploads/"
_MAX_PARTS: Final = 10_000
_ID = re.compile(r"[0-9a-f]{32}")
_OTHER_BYTES = ("BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")


def begin(bucket: Bucket, id: str, digest: str, size: int) -> Transfer:  # noqa: A002 - the field's name
    """Begin a transfer, by a multipart upload if it has several parts. Raises Invalid, Unavailable."""
    name = _name_of(id)
    transfer = Transfer(id=id, digest=digest, size=size)
    if transfer.parts > _MAX_PARTS:
        raise Invalid(f"{bucket} takes at most {_MAX_PARTS * PART} bytes a blob, {digest} has {size}")
    if transfer.parts == 1:
        return transfer
    return Transfer(id=id, digest=digest, size=size, multipart=Multipart.begin(bucket, name).id)


class Staged:
    """A transfer's object in the bucket. The server is asked to check the bytes, but loratree does not rely on it."""

    def __init__(self, bucket: Bucket, transfer: Transfer) -> None:
        self._bucket, self._transfer = bucket, transfer
        self.name = _name_of(transfer.id)
        self._multipart = Multipart(bucket, self.name, transfer.multipart) if transfer.multipart else None

    def send(self, source: Sending) -> None:
        """Send every part from this process. Raises Invalid if `source` holds other bytes, Unavailable."""
        with s3_errors(self._bucket):
            try:
                tags = {number: self._put(number, part) for number, part in enumerate(source.parts(), 1)}
                if self._multipart:
                    with suppress(NotFound):  # completed: the answer was lost, and boto3 sent the request again
                        self._multipart.complete(tags)
            except self._bucket.client.exceptions.ClientError as error:
                if error_code(error) in _OTHER_BYTES:
                    source.check()
                raise

    def put_part(self, number: int, content: IO[bytes]) -> None:
        """Send one part from this process. Raises Unavailable; Invalid if the server finds other bytes."""
        with s3_errors(self._bucket):
            try:
                self._put(number, content)
            except self._bucket.client.exceptions.ClientError as error:
                if error_code(error) not in _OTHER_BYTES:
                    raise
                digest = self._transfer.digest
                raise Invalid(f"the bytes sent as {digest} are not those announced: send them again") from error

    def _put(self, number: int, content: IO[bytes]) -> str:
        """Send a part and return the server's tag of it."""
        if self._multipart:
            return self._multipart.put(number, content)
        return self._bucket.client.put_object(Body=content, ChecksumSHA256=self._checksum, **self._at)["ETag"]

    def target(self, number: int) -> Target:
        """Return where a client sends part `number`. The length is signed, and the digest if it is the only part."""
        if not 1 <= number <= self._transfer.parts:
            raise NotFound(
                f"the transfer {self._transfer.id} has no part {number}: expected 1 to {self._transfer.parts}"
            )
        length = self._length_of(number)
        headers = {"Content-Length": str(length)}
        if self._multipart:
            verb, signed = "upload_part", self._multipart.at | {"PartNumber": number}
        else:
            verb, signed = "put_object", self._at | {"ChecksumSHA256": self._checksum}
            headers["x-amz-checksum-sha256"] = self._checksum
        with s3_errors(self._bucket):
            url = self._bucket.signer.generate_presigned_url(verb, signed | {"ContentLength": length}, LINK_S)
        return Target(url=url, headers=headers)

    def arrived(self) -> set[int]:
        """Return the numbers of the parts that arrived whole. Raises NotFound if the transfer was given up."""
        try:
            if self._multipart:
                return set(self._read_tags(self._multipart))
        except NotFound as error:
            if not self._bucket.head(self.name):
                raise self._ended() from error
            return set(range(1, self._transfer.parts + 1))
        stored = self._bucket.head(self.name)
        return {1} if stored and stored.size == self._transfer.size else set()

    def complete(self) -> None:
        """Make one object of the parts that clients sent. Raises Conflict if parts are missing, Unavailable."""
        if not self._multipart:
            return
        with suppress(NotFound):  # completed: by another request, or by a process that was then killed
            tags = self._read_tags(self._multipart)
            missing = [str(number) for number in range(1, self._transfer.parts + 1) if number not in tags]
            if missing:
                raise self.missing(missing)
            self._multipart.complete(tags)

    @contextmanager
    def out_of_reach(self) -> Iterator[str]:
        """Yield the name of an object that holds the bytes that arrived and that no client has a URL to write to.

        The URL of a single part stays valid, so such an object is copied, and the copy is removed after the block. The
        URLs of several parts end with their multipart upload. Raises NotFound, Unavailable.
        """
        if self._multipart:
            yield self.name
            return
        name = _name_of(uuid4().hex)
        self._bucket.copy(self.name, name, self._transfer.size)
        try:
            yield name
        finally:
            with suppress(Unavailable):  # `sweep` removes it later
                self._bucket.delete(name)

    def missing(self, numbers: list[str]) -> Conflict:
        """Return the error for parts that did not arrive."""
        return Conflict(f"the transfer {self._transfer.id} misses the parts {listed(numbers)}: send them")

    def lost(self) -> LoratreeError:
        """Return the error for a transfer of which nothing is there: only a single part can still be sent."""
        return self._ended() if self._multipart else self.missing(["1"])

    def remove(self) -> None:
        """Remove the bytes that arrived; a missing object is no error. Raises Unavailable."""
        if self._multipart:
            with suppress(NotFound):
                self._multipart.abort()
        self._bucket.delete(self.name)

    @property
    def _at(self) -> dict[str, Any]:
        return self._bucket.at(self.name)

    @property
    def _checksum(self) -> str:
        return b64encode(bytes.fromhex(self._transfer.digest.removeprefix(DIGEST_PREFIX))).decode()

    def _ended(self) -> NotFound:
        return NotFound(f"the transfer {self._transfer.id} has ended: begin a new one")

    def _length_of(self, number: int) -> int:
        return min(PART, self._transfer.size - PART * (number - 1))

    def _read_tags(self, multipart: Multipart) -> dict[int, str]:
        return {n: part.etag for n, part in multipart.parts().items() if part.size == self._length_of(n)}


def _name_of(id: str) -> str:  # noqa: A002 - the field's name
    if not _ID.fullmatch(id):
        raise Invalid(f"{id!r} names no transfer: expected 32 hexadecimal digits")
    return FOLDER + id
