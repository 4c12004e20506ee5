"""Streams that tell how far they were read."""

import io
from typing import BinaryIO, cast

from loratree_registry.core.progress import Tick


def counted(stream: BinaryIO, on_read: Tick) -> BinaryIO:
    """Return a reader of `stream` that calls `on_read` with each number of new bytes, in the thread that reads.

    A part that is read again counts once, and a part that is skipped counts with the next one that is read.
    """
    return cast("BinaryIO", _Counted(stream, on_read))


class _Counted(io.RawIOBase):
    def __init__(self, stream: BinaryIO, on_read: Tick) -> None:
        self._stream, self._on_read = stream, on_read
        self._at = self._furthest = stream.tell() if stream.seekable() else 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._stream.seekable()

    def read(self, count: int = -1) -> bytes:
        chunk = self._stream.read(count)
        self._at += len(chunk)
        if (new := self._at - self._furthest) > 0:
            self._furthest = self._at
            self._on_read(new)
        return chunk

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = self._stream.seek(offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at
