"""Blobs in an S3 bucket: prefix/sha256/ab/<64 hexadecimal digits>, staged first as prefix/uploads/<id>."""

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
from loratree_registry.blobs.verified import check_announced, drain, has_intact, is_intact, verified
from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.core.paths import is_digest
from loratree_registry.errors import Invalid, NotFound, Unavailable


class S3BlobStore(DirectStore):
    """A blob store in a bucket, which clients may write to and read from directly.

    The store does not trust the server's checksums, because several servers accept a wrong one. Each upload is staged,
    read back, hashed, and then copied inside the server to the key of its digest.
    """

    def __init__(
        self, bucket: str, prefix: str = "", *, endpoint: str | None = None, public_endpoint: str | None = None
    ) -> None:
        """`public_endpoint` is the address at which clients reach the server, if it is not `endpoint`."""
        self.bucket = Bucket(bucket, prefix, endpoint, public_endpoint)

    def __str__(self) -> str:
        return str(self.bucket)

    @override
    def put(self, digest: str, size: int, stream: BinaryIO, *, read_back: ReadBack | None = None) -> None:
        """Store `stream` through a staged object, in parts if it is large. See BlobStore.put."""
        check_announced(digest, size)
        if has_intact(self, digest, size, read_back):
            drain(verified(stream, digest, size))
            return
        source = sending(stream, digest, size)
        with self._stage(begin(self.bucket, uuid4().hex, digest, size)) as staged:
            staged.send(source)
            try:
                is_stored = self._copy_if_intact(staged.name, digest, size, read_back)
            except NotFound:  # the answer to a copy in parts was lost, and boto3 sent the request again
                is_stored = has_intact(self, digest, size, read_back)
            if not is_stored:
                source.check()  # raises if the fault is in the stream, not in the server
                raise Unavailable(f"{self} gave back other bytes than were written as {digest}: check that server")

    @override
    @contextmanager
    def open(self, digest: str) -> Iterator[BinaryIO]:
        """Open a blob for reading, as stored; the stream cannot seek. Raises NotFound, Unavailable."""
        with ExitStack() as opened:
            try:
                _, stream = opened.enter_context(self.bucket.open(_name_of(digest)))
            except NotFound as error:
                raise NotFound(f"{self} holds no blob {digest}") from error
            yield stream

    @override
    def size(self, digest: str) -> int | None:
        """Return the stored size in bytes, or None if there is no such blob. Raises Unavailable."""
        stored = self.bucket.head(_name_of(digest))
        return stored.size if stored else None

    @override
    def delete(self, digest: str) -> None:
        """Remove a blob or give up within 30 s, as SQLite's writers wait for the collector. See BlobStore.delete."""
        self.bucket.delete(_name_of(digest), brief=True)

    @override
    def list_blobs(self, *, after: str | None = None) -> Iterator[StoredBlob]:
        """Yield every blob, a page of the server's listing at a time. See BlobStore.list_blobs."""
        for stored in self.bucket.list(BLOBS, after=_name_of(after) if after else ""):
            digest = DIGEST_PREFIX + stored.name.rpartition("/")[2]
            if is_digest(digest) and stored.name == _name_of(digest):
                yield StoredBlob(digest, stored.size, stored.modified)

    @override
    def sweep(self, *, before: datetime, keep: Collection[str] = (), dry_run: bool = False) -> list[str]:
        """Remove the staged objects and multipart uploads that got no bytes since `before`. See BlobStore.sweep."""
        return sweep(self.bucket, before=before, keep=keep, dry_run=dry_run)

    @override
    def begin(self, id: str, digest: str, size: int) -> Transfer:
        """Begin a transfer to the staged object `uploads/ID`. Raises Invalid, Unavailable."""
        check_announced(digest, size)
        return begin(self.bucket, id, digest, size)

    @override
    def arrived(self, transfer: Transfer) -> set[int]:
        """Return the numbers of the parts that arrived whole. See DirectStore.arrived."""
        return Staged(self.bucket, transfer).arrived()

    @override
    def target(self, transfer: Transfer, number: int) -> Target:
        """Return where to send part `number`. See DirectStore.target."""
        return Staged(self.bucket, transfer).target(number)

    @override
    def put_part(self, transfer: Transfer, number: int, content: IO[bytes]) -> None:
        """Send part `number` from this process. See DirectStore.put_part."""
        Staged(self.bucket, transfer).put_part(number, content)

    @override
    def accept(self, transfer: Transfer, *, read_back: ReadBack | None = None) -> None:
        """Make a blob of the bytes that arrived. Accepting a transfer twice is no error. See DirectStore.accept."""
        staged, digest, size = Staged(self.bucket, transfer), transfer.digest, transfer.size
        staged.complete()
        try:
            with staged.out_of_reach() as name:
                is_stored = self._copy_if_intact(name, digest, size, read_back)
        except NotFound as error:
            if not has_intact(self, digest, size, read_back):
                raise staged.lost() from error
            return
        _remove(staged)
        if not is_stored:
            raise Invalid(f"the bytes that arrived as {digest} are others: hash the file again and send it again")

    @override
    def give_up(self, transfer: Transfer) -> None:
        """Remove the bytes that arrived; a missing transfer is no error. Raises Unavailable."""
        Staged(self.bucket, transfer).remove()

    @override
    def link(self, digest: str, *, head: bool = False) -> str:
        """Return a presigned URL for GET or HEAD, the one method that its signature covers. Raises Unavailable."""
        verb = "head_object" if head else "get_object"
        with s3_errors(self):
            return self.bucket.signer.generate_presigned_url(verb, self.bucket.at(_name_of(digest)), LINK_S)

    @override
    def close(self) -> None:
        """Close the connections, if any were opened."""
        self.bucket.close()

    @contextmanager
    def _stage(self, transfer: Transfer) -> Iterator[Staged]:
        staged = Staged(self.bucket, transfer)
        try:
            yield staged
        finally:
            _remove(staged)

    def _copy_if_intact(self, name: str, digest: str, size: int, read_back: ReadBack | None) -> bool:
        """Copy an object to the key of `digest` if its bytes are right, and return whether they are.

        No client can write to the object, so the hashed bytes are the copied bytes. Trusting the server to copy them
        intact is like trusting it to store them intact; `verify` reads every blob again. Raises NotFound, Unavailable.
        """
        with self.bucket.open(name) as (stored, stream):
            if stored.size != size or not is_intact(stream, digest, size, read_back):
                return False
        self.bucket.copy(name, _name_of(digest), size)
        return True


def _name_of(digest: str) -> str:
    check_announced(digest, 0)
    name = digest.removeprefix(DIGEST_PREFIX)
    return f"{BLOBS}{name[:2]}/{name}"


def _remove(staged: Staged) -> None:
    """Remove a staged object that is not needed; if the server does not answer, `sweep` removes it later."""
    with suppress(Unavailable):
        staged.remove()
