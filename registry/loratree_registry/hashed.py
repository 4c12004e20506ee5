"""A stream that is hashed as it is read."""

import hashlib
from typing import BinaryIO

from loratree_registry.canonical import DIGEST_PREFIX

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
