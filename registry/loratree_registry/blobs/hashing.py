"""Streams that are hashed while they are read."""

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

from loratree_registry.core.digests import DIGEST_PREFIX

_CHUNK = 1024 * 1024
_IN_THREAD = _CHUNK  # bytes of a chunk, from which on it is hashed in the thread


class Hashed:
    """A stream that counts and hashes the bytes that are read from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._hasher, self.count = stream, hashlib.sha256(), 0

    def read(self, count: int = -1) -> bytes:
        """Read up to `count` bytes, as the stream itself does."""
        chunk = self._stream.read(count)
        self._hasher.update(chunk)
        self.count += len(chunk)
        return chunk

    def drain(self) -> None:
        """Read to the end of the stream."""
        while self.read(_CHUNK):
            pass

    @property
    def digest(self) -> str:
        """The SHA-256 of the bytes that were read so far."""
        return DIGEST_PREFIX + self._hasher.hexdigest()


@contextmanager
def hashing(stream: BinaryIO) -> Iterator["Hashing"]:
    """Yield a reader of `stream` that hashes large chunks in a second thread."""
    with ExitStack() as threads:
        yield Hashing(stream, threads)


class Hashing(io.RawIOBase):
    """A stream that hashes each chunk in a thread while it reads the next one; callers read its attribute `stream`.

    The thread starts with the first large chunk: for a small file it would take longer than the hashing.
    """

    def __init__(self, stream: BinaryIO, threads: ExitStack) -> None:
        """`threads` ends the thread."""
        self._stream, self._threads = stream, threads
        self._thread: ThreadPoolExecutor | None = None
        self._hasher, self._size = hashlib.sha256(), 0
        self._hashing: Future[None] | None = None
        self.stream = cast("BinaryIO", io.BufferedReader(self, _CHUNK))  # joins small reads into large chunks

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def readinto(self, buffer: Any) -> int:
        """See io.RawIOBase."""
        chunk = self._read_next(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def finish(self) -> tuple[str, int]:
        """Read the rest, and return the digest and the size of the whole stream."""
        while self._read_next(_CHUNK):
            pass
        if self._hashing:
            self._hashing.result()
        return DIGEST_PREFIX + self._hasher.hexdigest(), self._size

    def _read_next(self, count: int) -> bytes:
        chunk = self._stream.read(count)
        if self._hashing:
            self._hashing.result()
            self._hashing = None
        self._size += len(chunk)
        if len(chunk) < _IN_THREAD:
            self._hasher.update(chunk)
            return chunk
        self._thread = self._thread or self._threads.enter_context(ThreadPoolExecutor(1))
        self._hashing = self._thread.submit(self._hasher.update, chunk)
        return chunk
