"""Hashing stored bytes as they are read back, while someone else looks at them."""

import hashlib
import io
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, cast

from loratree_registry.blobs.store import ReadBack
from loratree_registry.blobs.verified import CHUNK
from loratree_registry.canonical import DIGEST_PREFIX
from loratree_registry.errors import LoratreeError


def intact(stream: BinaryIO, digest: str, size: int, read_back: ReadBack | None = None) -> bool:
    """Reads `stream` to its end, first through `read_back`, and tells whether it holds the bytes of `digest`.

    Raises what `read_back` raises, unless the bytes are others: then that says nothing about the right ones.
    """
    with ThreadPoolExecutor(1) as thread:
        hashed = _Hashed(stream, thread)
        try:
            if read_back:
                read_back(cast("BinaryIO", io.BufferedReader(hashed, CHUNK)))
        except LoratreeError:
            if hashed.finish() == (digest, size):
                raise
            return False
        return hashed.finish() == (digest, size)


class _Hashed(io.RawIOBase):
    """A stream whose chunks are hashed in a thread while the next ones are read."""

    def __init__(self, stream: BinaryIO, thread: ThreadPoolExecutor) -> None:
        self._stream, self._thread = stream, thread
        self._hasher, self._size = hashlib.sha256(), 0
        self._hashing: Future[None] | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._next(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def finish(self) -> tuple[str, int]:
        """Reads what is left, and returns the digest and the size of everything."""
        while self._next(CHUNK):
            pass
        if self._hashing:
            self._hashing.result()
        return DIGEST_PREFIX + self._hasher.hexdigest(), self._size

    def _next(self, count: int) -> bytes:
        chunk = self._stream.read(count)
        if self._hashing:
            self._hashing.result()
        self._hashing = self._thread.submit(self._hasher.update, chunk)
        self._size += len(chunk)
        return chunk
