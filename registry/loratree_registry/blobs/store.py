"""The BlobStore protocol: bytes named by their SHA-256; and what a store adds that clients reach themselves."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, BinaryIO, Final, Protocol, runtime_checkable

PART: Final = 64 * 1024**2  # bytes a part of an upload: a 35 MB adapter is one, 640 GB are S3's 10,000
LINK_S: Final = 900  # how long a presigned URL is good for

# Is given the stored bytes as they are read back, to look at them on the way; what it leaves unread is read after it.
# Where a damaged blob is replaced it is given both, the damaged bytes first, so it starts anew each time.
ReadBack = Callable[[BinaryIO], object]


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that a store holds: its size in bytes, and when it was written."""

    digest: str
    size: int
    modified: datetime


class BlobStore(Protocol):
    """Bytes by digest (`sha256:` and 64 hexadecimal digits). A blob that is visible is whole and verified."""

    def put(self, digest: str, size: int, stream: BinaryIO, *, read_back: ReadBack | None = None) -> None:
        """Stores `stream` under `digest` and reads back and hashes what was stored, which `read_back` may look at.

        What `read_back` raises is raised, as long as the bytes are the right ones; then nothing new is visible.
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

    def list_blobs(self, *, after: str | None = None) -> Iterator[StoredBlob]:
        """Every blob there is, in the order of digests, a page at a time; `after` starts behind one.

        Raises Unavailable.
        """
        ...

    def sweep(self, *, before: datetime, keep: Collection[str] = (), dry_run: bool = False) -> list[str]:
        """Removes what puts and uploads that never ended left behind before a moment, and returns its names.

        Temporary files, staged objects, incomplete multipart uploads; never a blob. What `keep` names is left: a
        server may date what was made of parts from its beginning. Raises Unavailable.
        """
        ...

    def close(self) -> None:
        """Releases connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Bytes on their way into a store, in parts of PART bytes; `multipart` is the store's own name for it, if any.

    `id` names the staged object `uploads/ID`: 32 hexadecimal digits.
    """

    id: str
    digest: str
    size: int
    multipart: str | None = None

    @property
    def parts(self) -> int:
        """How many parts there are; at least one, which may be empty."""
        return max(1, -(-self.size // PART))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to PUT one part, and the headers that must be sent exactly so."""

    url: str = field(repr=False)  # whoever reads it may write
    headers: Mapping[str, str]


@runtime_checkable
class DirectStore(BlobStore, Protocol):
    """A store that clients send to and read from themselves, by presigned URLs that are good for LINK_S seconds."""

    def begin(self, id: str, digest: str, size: int) -> Transfer:  # noqa: A002 - the field's name
        """Begins a transfer to the staged object `uploads/ID`; multipart where it has more than one part."""
        ...

    def arrived(self, transfer: Transfer) -> set[int]:
        """The numbers, from 1, of the parts that are there whole. Raises NotFound where it was given up."""
        ...

    def target(self, transfer: Transfer, number: int) -> Target:
        """Where to send part `number`, from 1, of the size that the transfer says."""
        ...

    def put_part(self, transfer: Transfer, number: int, content: IO[bytes]) -> None:
        """Send part `number` from this process. Raises Unavailable; Invalid if the server finds other bytes."""
        ...

    def accept(self, transfer: Transfer, *, read_back: ReadBack | None = None) -> None:
        """Hashes what arrived and makes it the blob of its digest by a copy inside the store; the staged object goes.

        What a client sends meanwhile changes nothing. Raises Conflict where parts are missing, Invalid where it holds
        other bytes (then it is gone), Unavailable.
        """
        ...

    def give_up(self, transfer: Transfer) -> None:
        """Removes what arrived; a transfer that is not there is no error."""
        ...

    def link(self, digest: str) -> str:
        """A presigned URL that reads a blob."""
        ...
