"""The body of an HTTP response as a stream."""

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Final

_CHUNK: Final = 256 * 1024


def opened(chunks: Iterator[bytes], failures: Callable[[], AbstractContextManager[None]]) -> BinaryIO:
    """Return a stream of `chunks` that cannot seek; each chunk is read inside `failures()`."""
    return io.BufferedReader(_Body(chunks, failures), _CHUNK)


class _Body(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes], failures: Callable[[], AbstractContextManager[None]]) -> None:
        self._chunks, self._failures, self._rest = chunks, failures, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._failures():
            chunk = self._rest or next(self._chunks, b"")
        count = min(len(chunk), len(buffer))
        buffer[:count], self._rest = chunk[:count], chunk[count:]
        return count
