"""A file of the registry, read to its end although connections break."""

import io
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, BinaryIO, Final, cast

from loratree_registry.errors import Unavailable
from loratree_registry.protocol import Registry

_BREAKS: Final = 5  # in one file
_PAUSE_S: Final = 0.2
_CHUNK = 1024 * 1024


@contextmanager
def open_resumed(registry: Registry, ref: str, name: str) -> Iterator[BinaryIO]:
    """Opens what Registry.open_file does; where it breaks off, it goes on from there, a few times."""
    with io.BufferedReader(_Resumed(registry, ref, name), _CHUNK) as stream:
        yield stream


class _Resumed(io.RawIOBase):
    def __init__(self, registry: Registry, ref: str, name: str) -> None:
        self._open = partial(registry.open_file, ref, name)
        self._at = self._breaks = 0
        self._opened = ExitStack()
        self._stream: BinaryIO | None = self._opened.enter_context(self._open())

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            try:
                if self._stream is None:
                    self._stream = self._opened.enter_context(self._open(start=self._at))
                # One read of what lies beneath: where it fails, nothing was taken.
                chunk = cast("io.BufferedReader", self._stream).read1(len(buffer))
            except Unavailable:
                self._stream = None
                self._opened.close()
                self._breaks += 1
                if self._breaks > _BREAKS:
                    raise
                time.sleep(_PAUSE_S * self._breaks)
            else:
                buffer[: len(chunk)] = chunk
                self._at += len(chunk)
                return len(chunk)

    def close(self) -> None:
        self._opened.close()
        super().close()
