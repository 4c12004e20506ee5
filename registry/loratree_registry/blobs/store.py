"""The BlobStore protocol: bytes named by their SHA-256; and DirectStore, a store that clients reach directly."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, BinaryIO, Final, Protocol, runtime_checkable

PART: Final = 64 * 1024**2  # bytes in a part of an upload: a 35 MB adapter is one part, 640 GB are 10,000, S3's limit
LINK_S: Final = 900  # how long a presigned URL is valid

# A function that inspects stored bytes while they are read back; it need not read them all. If a damaged blob is
# replaced, the function is called twice, first with the damaged bytes, so each call must start from nothing.
ReadBack = Callable[[BinaryIO], object]


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob in a store: its size in bytes, and when it was written."""

    digest: str
    size: int
    modified: datetime


class BlobStore(Protocol):
    """A store of bytes by digest (`sha256:` and 64 hexadecimal digits). A visible blob is complete and verified."""

    def put(self, digest: str, size: int, stream: BinaryIO, *, read_back: ReadBack | None = None) -> None:
        """Store `stream` under `digest`, then read back and hash the stored bytes, which `read_back` may inspect.

        An error of `read_back` is raised if the bytes are right. Raises Invalid if the stream has another digest or
        size, Unavailable if the store cannot take it (full, unreachable, forbidden). After an error nothing new is
        visible. A blob that is already stored and intact is not replaced.
        """
        ...

    def open(self, digest: str) -> AbstractContextManager[BinaryIO]:
        """Open a blob for reading, as stored. Raises NotFound, Unavailable."""
        ...

    def size(self, digest: str) -> int | None:
        """Return the stored size in bytes, or None if there is no such blob. Raises Unavailable."""
        ...

    def delete(self, digest: str) -> None:
        """Remove a blob; a missing blob is no error. Raises Unavailable."""
        ...

    def list_blobs(self, *, after: str | None = None) -> Iterator[StoredBlob]:
        """Yield every blob after the digest `after`, in order of digest, a page at a time. Raises Unavailable."""
        ...

    def sweep(self, *, before: datetime, keep: Collection[str] = (), dry_run: bool = False) -> list[str]:
        """Remove the remains of unfinished puts and uploads from before a moment, and return their names.

        The remains are temporary files, staged objects and incomplete multipart uploads, never a blob. Names in `keep`
        stay: a server may date an object from the beginning of its multipart upload. Raises Unavailable.
        """
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """An upload into a store, in parts of PART bytes; `multipart` is the store's id of a multipart upload.

    `id` names the staged object `uploads/ID`: 32 hexadecimal digits.
    """

    id: str
    digest: str
    size: int
    multipart: str | None = None

    @property
    def parts(self) -> int:
        """The number of parts: at least one, which may be empty."""
        return max(1, -(-self.size // PART))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The URL to PUT one part to, and the headers to send unchanged."""

    url: str = field(repr=False)  # anyone who reads it can write with it
    headers: Mapping[str, str]


@runtime_checkable
class DirectStore(BlobStore, Protocol):
    """A store that clients write to and read from directly, by presigned URLs that are valid for LINK_S seconds.

    A client may send anything, so it writes only to a staged object; `accept` verifies the bytes and copies them to
    a blob, which no client can write to.
    """

    def begin(self, id: str, digest: str, size: int) -> Transfer:  # noqa: A002 - the field's name
        """Begin a transfer to the staged object `uploads/ID`, by a multipart upload if it has several parts."""
        ...

    def arrived(self, transfer: Transfer) -> set[int]:
        """Return the numbers, from 1, of the parts that arrived whole. Raises NotFound if the transfer was given up."""
        ...

    def target(self, transfer: Transfer, number: int) -> Target:
        """Return where to send part `number`, from 1; the URL accepts only the length that the part must have."""
        ...

    def put_part(self, transfer: Transfer, number: int, content: IO[bytes]) -> None:
        """Send part `number` from this process. Raises Unavailable; Invalid if the server finds other bytes."""
        ...

    def accept(self, transfer: Transfer, *, read_back: ReadBack | None = None) -> None:
        """Hash the bytes that arrived, copy them inside the store to their blob, and remove the staged object.

        Bytes that a client sends during this call change nothing. Raises Conflict if parts are missing, Invalid if
        other bytes arrived (the staged object is removed), Unavailable.
        """
        ...

    def give_up(self, transfer: Transfer) -> None:
        """Remove the bytes that arrived; a missing transfer is no error."""
        ...

    def link(self, digest: str, *, head: bool = False) -> str:
        """Return a presigned URL that reads a blob by GET, or only its headers by HEAD if `head` is set."""
        ...
