"""Uploads in parts: after an interruption, a client sends only the parts that have not arrived."""

from dataclasses import dataclass, field
from typing import IO, Final, Protocol

from loratree_registry.errors import NotFound

LIFETIME_S: Final = 24 * 3600  # how long an upload can be resumed


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of an upload, numbered from 1: the URL to PUT it to, and the headers to send unchanged.

    `url` is a path of this server, or a presigned URL of another server, valid for 15 minutes.
    """

    number: int
    url: str = field(repr=False)  # anyone who reads a presigned URL can write with it
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An unfinished upload of `parts` parts, each of `part_size` bytes except the last, which may be shorter.

    `arrived` lists the parts that arrived whole; `next` is the first part that is missing, null if no part is missing.
    """

    id: str
    sha256: str
    size: int
    part_size: int
    parts: int
    arrived: list[int]
    next: Part | None


class Uploads(Protocol):
    """A receiver of uploads. Each method raises NotFound if the id is unknown or the upload has ended."""

    def begin(self, sha256: str, size: int) -> Upload:
        """Begin an upload, or resume one of the same bytes if it has several parts."""
        ...

    def find(self, id: str) -> Upload:  # noqa: A002 - the field's name
        """Return the current state of an upload."""
        ...

    def part(self, id: str, number: int) -> Part:  # noqa: A002 - the field's name
        """Return the URL and the headers of one part. Raises Invalid if the upload has no such part."""
        ...

    def complete(self, upload: Upload) -> None:
        """Verify the bytes and store them. Raises Conflict if parts are missing, Invalid if the bytes are wrong."""
        ...

    def give_up(self, id: str) -> None:  # noqa: A002 - the field's name
        """Remove an upload and the parts that arrived."""
        ...


class ClientUploads(Uploads, Protocol):
    """A receiver of uploads to which this process sends the parts."""

    def put(self, id: str, part: Part, content: IO[bytes]) -> None:  # noqa: A002 - the field's name
        """Send the bytes of one part. Raises Invalid, and Unavailable, after which the caller may retry."""
        ...


def unknown_upload(id: str) -> NotFound:  # noqa: A002 - the field's name
    """Return the error for an upload that does not exist."""
    return NotFound(f"there is no upload {id[:64]!r}: it was completed, refused, or idle for a day; begin another")
