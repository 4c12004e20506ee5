"""Streams that are sent in parts; a part can be read again, so that a failed request can be retried."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

from loratree_registry.blobs.store import PART
from loratree_registry.blobs.verified import drain, read, size_error, verified
from loratree_registry.disk.disk_errors import disk_errors


class Sending(Protocol):
    """A stream that is being sent."""

    def parts(self) -> Iterator[IO[bytes]]:
        """Yield files of about PART bytes, in order. Raises Invalid before the last one if the size is wrong."""
        ...

    def check(self) -> None:
        """Raise Invalid if the stream holds other bytes than were announced."""
        ...


def sending(stream: BinaryIO, digest: str, size: int) -> Sending:
    """Return a way to send `stream`: directly if it can seek, else through a temporary file."""
    return _Seekable(stream, digest, size) if stream.seekable() else _Forward(stream, digest, size)


class _Seekable:
    """A stream that is sent directly, and hashed only if other bytes arrived than were announced."""

    def __init__(self, stream: BinaryIO, digest: str, size: int) -> None:
        self._stream, self._digest, self._size = stream, digest, size
        self._start = stream.tell()

    def parts(self) -> Iterator[IO[bytes]]:
        length = self._stream.seek(0, io.SEEK_END) - self._start
        if length != self._size:
            raise size_error(self._digest, self._size, "more" if length > self._size else str(length))
        for start in range(0, max(length, 1), PART):
            part = _PartFile(self._stream, self._start + start, min(PART, length - start), self._digest)
            yield cast("BinaryIO", part)

    def check(self) -> None:
        self._stream.seek(self._start)
        drain(verified(self._stream, self._digest, self._size))


class _Forward:
    """A stream that can be read only once: it is hashed while each part is written to a temporary file."""

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
        """Do nothing: the bytes were hashed while they were read."""

    def _fill(self, part: IO[bytes]) -> None:
        """Fill a part. The last part reads the stream to its end, where size and digest are checked."""
        for chunk in self._chunks:
            part.write(chunk)
            self._left -= len(chunk)
            if self._left and part.tell() >= PART:
                break
        part.seek(0)


class _PartFile(io.RawIOBase):
    """A file that shows `length` bytes of a stream, from `start`."""

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
        remaining = self._length - self._at
        chunk = read(self._stream, self._digest, remaining if count < 0 else min(count, remaining))
        if remaining and count and not chunk:
            raise size_error(self._digest, self._length, str(self._at))
        self._at += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._stream.seek(self._start + self._at)
        return self._at

    def tell(self) -> int:
        return self._at
