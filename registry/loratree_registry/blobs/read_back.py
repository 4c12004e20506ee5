"""Hashing stored bytes as they are read back, while someone else looks at them."""

from typing import BinaryIO

from loratree_registry.blobs.store import BlobStore, ReadBack
from loratree_registry.errors import LoratreeError, NotFound
from loratree_registry.hashed import hashing


def intact(stream: BinaryIO, digest: str, size: int, read_back: ReadBack | None = None) -> bool:
    """Reads `stream` to its end, first through `read_back`, and tells whether it holds the bytes of `digest`.

    Raises what `read_back` raises, unless the bytes are others: then that says nothing about the right ones.
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


def holds(store: BlobStore, digest: str, size: int, read_back: ReadBack | None = None) -> bool:
    """Reads a blob and tells whether it is there and intact: a name alone proves nothing.

    Raises what `intact` raises, and Unavailable where the store cannot be asked.
    """
    try:
        with store.open(digest) as stream:
            return intact(stream, digest, size, read_back)
    except NotFound:
        return False
