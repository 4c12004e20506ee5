"""Streams that must hold exactly the announced bytes."""

import hashlib
import io
from collections.abc import Iterator
from typing import BinaryIO

from loratree_registry.blobs.hashing import hashing
from loratree_registry.blobs.store import BlobStore, ReadBack
from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.core.paths import is_digest
from loratree_registry.core.text import counted
from loratree_registry.errors import Invalid, LoratreeError, NotFound

CHUNK = 1024 * 1024


def check_announced(digest: str, size: int) -> None:
    """Check the form of an announced digest and size, before any byte is read. Raises Invalid."""
    if not is_digest(digest):
        raise Invalid(f"{digest!r} is not a digest: expected sha256: and 64 hexadecimal digits")
    if size < 0:
        raise Invalid(f"{digest} is announced with {size} bytes: expected 0 or more")


def verified(stream: BinaryIO, digest: str, size: int) -> Iterator[bytes]:
    """Yield `stream` chunk by chunk, never more than `size` bytes.

    Raises Invalid as soon as the stream is longer than announced, and at its end if it is shorter or has another
    digest. So a caller must not use the chunks for anything final before the iteration has ended.
    """
    hasher, count = hashlib.sha256(), 0
    while chunk := read(stream, digest, min(CHUNK, size + 1 - count)):
        count += len(chunk)
        if count > size:
            raise size_error(digest, size, "more")
        hasher.update(chunk)
        yield chunk
    if count < size:
        raise size_error(digest, size, str(count))
    actual = DIGEST_PREFIX + hasher.hexdigest()
    if actual != digest:
        raise Invalid(f"the bytes sent as {digest} are others: got {actual}; hash the file again and send it again")


def skip(stream: BinaryIO, count: int) -> None:
    """Move `count` bytes forward in a stream, also in one that cannot seek."""
    if stream.seekable():
        stream.seek(count, io.SEEK_CUR)
        return
    while count and (chunk := stream.read(min(CHUNK, count))):
        count -= len(chunk)


def drain(chunks: Iterator[bytes]) -> None:
    """Read to the end, only for the errors that this may raise."""
    for _ in chunks:
        pass


def read(stream: BinaryIO, digest: str, count: int) -> bytes:
    """Read from a stream that is sent as `digest`. Raises Invalid if the read fails."""
    try:
        return stream.read(count)
    except OSError as error:
        raise Invalid(f"the bytes to send as {digest} cannot be read: {error.strerror or error}") from error


def size_error(digest: str, size: int, got: str) -> Invalid:
    """Return the error for a stream that has another size than was announced."""
    return Invalid(
        f"the bytes sent as {digest} are not the ones announced: expected {counted(size, 'byte')}, got {got}; "
        "the file changed while it was sent or was cut off: hash it again and send it again"
    )


def is_intact(stream: BinaryIO, digest: str, size: int, read_back: ReadBack | None = None) -> bool:
    """Read `stream` to its end, first through `read_back`, and return whether it holds the bytes of `digest`.

    Raises the error of `read_back` only if the bytes are right: an error about wrong bytes says nothing.
    """
    with hashing(stream) as hashed:
        try:
            if read_back:
                read_back(hashed.stream)
        except LoratreeError:
            if hashed.finish() == (digest, size):
                raise
            return False
        return hashed.finish() == (digest, size)


def has_intact(store: BlobStore, digest: str, size: int, read_back: ReadBack | None = None) -> bool:
    """Read a blob and return whether it is stored and intact; its name alone proves nothing.

    Raises the errors of `is_intact`, and Unavailable if the store does not answer.
    """
    if store.size(digest) != size:
        return False
    try:
        with store.open(digest) as stream:
            return is_intact(stream, digest, size, read_back)
    except NotFound:
        return False
