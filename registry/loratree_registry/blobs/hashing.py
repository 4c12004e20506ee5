"""A stream that is hashed as it is read."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from loratree_registry.core.digests import DIGEST_PREFIX

_CHUNK = 1024 * 1024


class Hashed:
    """What is read forward from a stream, with the digest and the count of the bytes so far."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._hasher, self.count = stream, hashlib.sha256(), 0

    def read(self, count: int = -1) -> bytes:
        """Reads as the stream does."""
        chunk = self._stream.read(count)
        self._hasher.update(chunk)
        self.count += len(chunk)
        return chunk

    def drain(self) -> None:
        """Reads to the end."""
        while self.read(_CHUNK):
            pass

    @property
    def digest(self) -> str:
        """The SHA-256 of what was read."""
        return DIGEST_PREFIX + self._hasher.hexdigest()


@contextmanager
def hashing(stream: BinaryIO) -> Iterator["Hashing"]:
    """Hashes what is read of `stream` in a thread of its own."""
    with ThreadPoolExecutor(1) as thread:
        yield Hashing(stream, thread)


class Hashing(io.RawIOBase):
    """A stream whose chunks are hashed in a thread while the next ones are read, by way of `stream`."""

    def __init__(self, stream: BinaryIO, thread: ThreadPoolExecutor) -> None:
        self._stream, self._thread = stream, thread
        self._hasher, self._size = hashlib.sha256(), 0
        self._hashing: Future[None] | None = None
        self.stream = cast("BinaryIO", io.BufferedReader(self, _CHUNK))  # many small reads are hashed at once

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        chunk = self._next(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def finish(self) -> tuple[str, int]:
        """Reads what is left, and returns the digest and the size of everything."""
        while self._next(_CHUNK):
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
