"""The BlobStore protocol: five verbs over bytes named by their SHA-256."""

from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol


class BlobStore(Protocol):
    """Bytes by digest (`sha256:` and 64 hexadecimal digits). A blob that is visible is whole and verified."""

    def put(self, digest: str, size: int, stream: BinaryIO) -> None:
        """Stores `stream` under `digest`, hashing what is sent and reading back what was stored.

        Raises Invalid where the stream has another digest or size, Unavailable where the store cannot take it (full,
        unreachable, forbidden); then nothing is visible. A blob that is there already and intact is kept.
        """
        ...

    def open(self, digest: str) -> AbstractContextManager[BinaryIO]:
        """Opens a blob for reading, as stored. Raises NotFound, Unavailable."""
        ...

    def size(self, digest: str) -> int | None:
        """The stored size in bytes, None where there is no such blob. Raises Unavailable."""
        ...

    def delete(self, digest: str) -> None:
        """Removes a blob; one that is not there is no error. Raises Unavailable."""
        ...

    def close(self) -> None:
        """Releases connections."""
        ...
