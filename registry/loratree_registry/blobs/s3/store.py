"""Blobs in an S3 bucket: prefix/sha256/ab/<64 hexadecimal digits>, by way of prefix/uploads/<id>."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from typing import IO, BinaryIO
from uuid import uuid4

from typing_extensions import override

from loratree_registry.blobs.parts import sending
from loratree_registry.blobs.s3.bucket import BLOBS, Bucket
from loratree_registry.blobs.s3.client import s3_errors
from loratree_registry.blobs.s3.leftovers import sweep
from loratree_registry.blobs.s3.staged import Staged, begin
from loratree_registry.blobs.store import LINK_S, DirectStore, ReadBack, StoredBlob, Target, Transfer
from loratree_registry.blobs.verified import check_announced, drain, holds, intact, verified
from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.core.paths import is_digest
from loratree_registry.errors import Invalid, NotFound, Unavailable


class S3BlobStore(DirectStore):
    """A blob store in a bucket, which clients may send to and read from themselves.

    Integrity never rests on the server, as several accept a wrong checksum: everything is staged, read back, hashed,
    and then copied within the server to its digest's key.
    """

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint: str | None = None, public_endpoint: str | None = None
    ) -> None:
        """`public_endpoint` is where clients reach the server, where that is elsewhere than for this process."""
        self.bucket = Bucket(bucket, prefix, endpoint, public_endpoint)

    def __str__(self) -> str:
        return str(self.bucket)

    @override
    def put(self, digest: str, size: int, stream: BinaryIO, *, read_back: ReadBack | None = None) -> None:
        """Stores `stream` by way of a staged object, in parts where it is large. See BlobStore.put."""
        check_announced(digest, size)
        if holds(self, digest, size, read_back):
            drain(verified(stream, digest, size))
            return
        source = sending(stream, digest, size)
        with self._staged(begin(self.bucket, uuid4().hex, digest, size)) as staged:
            staged.send(source)
            try:
                right = self._keep(staged.name, digest, size, read_back)
            except NotFound:  # as the answer to a copy in parts was lost, and boto3 asked again
                right = holds(self, digest, size, read_back)
            if not right:
                source.check()  # tells whose fault it is
                raise Unavailable(f"{self} gave back other bytes than were written as {digest}: check that server")

    @override
    @contextmanager
    def open(self, digest: str) -> Iterator[BinaryIO]:
        """Opens a blob for reading, as stored; the stream cannot seek. Raises NotFound, Unavailable."""
        with ExitStack() as opened:
            try:
                _, stream = opened.enter_context(self.bucket.open(_name(digest)))
            except NotFound as error:
                raise NotFound(f"{self} holds no blob {digest}") from error
            yield stream

    @override
    def size(self, digest: str) -> int | None:
        """The stored size in bytes, None where there is no such blob. Raises Unavailable."""
        stored = self.bucket.head(_name(digest))
        return stored.size if stored else None

    @override
    def delete(self, digest: str) -> None:
        """Removes a blob, within the time for which SQLite's writers wait for the collector. See BlobStore.delete."""
        self.bucket.delete(_name(digest), brief=True)

    @override
    def list_blobs(self, *, after: str | None = None) -> Iterator[StoredBlob]:
        """Every blob, as many at a time as the server lists at once. See BlobStore.list_blobs."""
        for stored in self.bucket.list(BLOBS, after=_name(after) if after else ""):
            digest = DIGEST_PREFIX + stored.name.rpartition("/")[2]
            if is_digest(digest) and stored.name == _name(digest):
                yield StoredBlob(digest, stored.size, stored.modified)

    @override
    def sweep(self, *, before: datetime, keep: Collection[str] = (), dry_run: bool = False) -> list[str]:
        """Removes staged objects and multipart uploads to which nothing was added since. See BlobStore.sweep."""
        return sweep(self.bucket, before=before, keep=keep, dry_run=dry_run)

    @override
    def begin(self, id: str, digest: str, size: int) -> Transfer:
        """Begins a transfer to the staged object `uploads/ID`. Raises Invalid, Unavailable."""
        check_announced(digest, size)
        return begin(self.bucket, id, digest, size)

    @override
    def arrived(self, transfer: Transfer) -> set[int]:
        """The numbers of the parts that are there whole. See DirectStore.arrived."""
        return Staged(self.bucket, transfer).arrived()

    @override
    def target(self, transfer: Transfer, number: int) -> Target:
        """Where to send part `number`. See DirectStore.target."""
        return Staged(self.bucket, transfer).target(number)

    @override
    def put_part(self, transfer: Transfer, number: int, content: IO[bytes]) -> None:
        """Send part `number` from this process. See DirectStore.put_part."""
        Staged(self.bucket, transfer).put_part(number, content)

    @override
    def accept(self, transfer: Transfer, *, read_back: ReadBack | None = None) -> None:
        """Makes what arrived a blob. See DirectStore.accept; one that was accepted already is accepted again."""
        staged, digest, size = Staged(self.bucket, transfer), transfer.digest, transfer.size
        staged.complete()
        try:
            with staged.out_of_reach() as name:
                right = self._keep(name, digest, size, read_back)
        except NotFound as error:
            if not holds(self, digest, size, read_back):
                raise staged.missing([str(number) for number in range(1, transfer.parts + 1)]) from error
            return
        _remove(staged)
        if not right:
            raise Invalid(f"the bytes that arrived as {digest} are others: hash the file again and send it again")

    @override
    def give_up(self, transfer: Transfer) -> None:
        """Removes what arrived; a transfer that is not there is no error. Raises Unavailable."""
        Staged(self.bucket, transfer).remove()

    @override
    def link(self, digest: str) -> str:
        """A presigned URL that reads a blob. Raises Unavailable."""
        with s3_errors(self):
            return self.bucket.signer.generate_presigned_url("get_object", self.bucket.at(_name(digest)), LINK_S)

    @override
    def close(self) -> None:
        """Closes the connections, if any were opened."""
        self.bucket.close()

    @contextmanager
    def _staged(self, transfer: Transfer) -> Iterator[Staged]:
        staged = Staged(self.bucket, transfer)
        try:
            yield staged
        finally:
            _remove(staged)

    def _keep(self, name: str, digest: str, size: int, read_back: ReadBack | None) -> bool:
        """Makes an object that no client can write to the blob, if it holds the right bytes.

        What is hashed is what is copied, whatever conditions the server heeds, so the digest's key never gets other
        bytes. That the server copies what it holds is as good a promise as that it keeps it; `verify` reads every blob
        again. Raises NotFound, Unavailable.
        """
        with self.bucket.open(name) as (found, stream):
            if found.size != size or not intact(stream, digest, size, read_back):
                return False
        self.bucket.copy(name, _name(digest), size)
        return True


def _name(digest: str) -> str:
    check_announced(digest, 0)
    name = digest.removeprefix(DIGEST_PREFIX)
    return f"{BLOBS}{name[:2]}/{name}"


def _remove(staged: Staged) -> None:
    """Removes what is not needed any more; where the server does not answer, `sweep` does it later."""
    with suppress(Unavailable):
        staged.remove()
