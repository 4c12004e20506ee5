"""What is sent in parts that can be read again, so that a request can be sent again."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

from loratree_registry.blobs.store import PART
from loratree_registry.blobs.verified import changed, drain, read, verified
from loratree_registry.disk.disk_errors import disk_errors


class Sending(Protocol):
    """A stream on its way out."""

    def parts(self) -> Iterator[IO[bytes]]:
        """Files of about PART bytes, to be read in turn; the last one only where it is certain that all are needed."""
        ...

    def check(self) -> None:
        """Raises Invalid where the stream holds other bytes than were announced."""
        ...


def sending(stream: BinaryIO, digest: str, size: int) -> Sending:
    """How to send `stream`: from where it lies if it can seek, else by way of a temporary file."""
    return _Seekable(stream, digest, size) if stream.seekable() else _Forward(stream, digest, size)


class _Seekable:
    """A stream that is sent as it lies there and hashed only where what arrived is not what was announced."""

    def __init__(self, stream: BinaryIO, digest: str, size: int) -> None:
        self._stream, self._digest, self._size = stream, digest, size
        self._start = stream.tell()

    def parts(self) -> Iterator[IO[bytes]]:
        length = self._stream.seek(0, io.SEEK_END) - self._start
        if length != self._size:
            raise changed(self._digest, self._size, "more" if length > self._size else str(length))
        for start in range(0, max(length, 1), PART):
            part = _PartFile(self._stream, self._start + start, min(PART, length - start), self._digest)
            yield cast("BinaryIO", part)

    def check(self) -> None:
        self._stream.seek(self._start)
        drain(verified(self._stream, self._digest, self._size))


class _Forward:
    """A stream that is read once: hashed on its way into a temporary file, one for each part."""

    def __init__(self, stream: BinaryIO, digest: str, size: int) -> None:
        self._chunks, self._left = verified(stream, digest, size), size

    def parts(self) -> Iterator[IO[bytes]]:
        while True:
            with ExitStack() as opened:
                with disk_errors(Path(tempfile.gettempdir()), "TMPDIR", needs=min(self._left, PART)):
                    part = opened.enter_context(tempfile.TemporaryFile())
                    self._fill(part)
                yield part
            if not self._left:
                return

    def check(self) -> None:
        """What was sent was hashed on the way."""

    def _fill(self, part: IO[bytes]) -> None:
        """Fills a part; the last one until the stream has ended, which is where the stream is found right."""
        for chunk in self._chunks:
            part.write(chunk)
            self._left -= len(chunk)
            if self._left and part.tell() >= PART:
                break
        part.seek(0)


class _PartFile(io.RawIOBase):
    """`length` bytes of a stream from `start`, as a file of their own."""

    def __init__(self, stream: BinaryIO, start: int, length: int, digest: str) -> None:
        self._stream, self._start, self._length, self._digest = stream, start, length, digest
        self._at = 0
        self.seek(0)

    def __len__(self) -> int:
        return self._length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        left = self._length - self._at
        chunk = read(self._stream, self._digest, left if count < 0 else min(count, left))
        if left and count and not chunk:
            raise changed(self._digest, self._length, str(self._at))
        self._at += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._stream.seek(self._start + self._at)
        return self._at

    def tell(self) -> int:
        return self._at
