"""Sending bytes in parts to whoever takes them; what has arrived is not sent again."""

from dataclasses import dataclass, field
from typing import IO, Final, Protocol

from loratree_registry.errors import NotFound

LIFETIME_S: Final = 24 * 3600  # how long an upload can be gone on with


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Where to PUT one part, numbered from 1, and the headers to send exactly so.

    `url` is a path of this server, or the presigned URL of another, good for 15 minutes.
    """

    number: int
    url: str = field(repr=False)  # whoever reads a presigned one may write
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Bytes on their way in, in `parts` parts of `part_size` bytes, the last one what is left of them.

    `arrived` are the parts that are there whole; `next` is where the first of the others goes, null where none is left.
    """

    id: str
    sha256: str
    size: int
    part_size: int
    parts: int
    arrived: list[int]
    next: Part | None


class Uploads(Protocol):
    """What takes uploads. Each method raises NotFound for an id that it did not give, or no longer knows."""

    def begin(self, sha256: str, size: int) -> Upload:
        """Announces bytes; of several parts, an upload of the same bytes that was begun already goes on."""
        ...

    def find(self, id: str) -> Upload:  # noqa: A002 - the field's name
        """An upload as it stands."""
        ...

    def part(self, id: str, number: int) -> Part:  # noqa: A002 - the field's name
        """Where to send one part. Raises Invalid where the upload has no such part."""
        ...

    def complete(self, upload: Upload) -> None:
        """Verifies what arrived and stores it. Raises Conflict where parts are missing, Invalid for other bytes."""
        ...

    def give_up(self, id: str) -> None:  # noqa: A002 - the field's name
        """Removes an upload and what arrived of it."""
        ...


class ClientUploads(Uploads, Protocol):
    """Uploads whose parts this process sends itself."""

    def put(self, id: str, part: Part, content: IO[bytes]) -> None:  # noqa: A002 - the field's name
        """Send the bytes of one part. Raises Unavailable, after which it may be called again; Invalid."""
        ...


def unknown_upload(id: str) -> NotFound:  # noqa: A002 - the field's name
    """The sentence for an upload that is not there."""
    return NotFound(f"there is no upload {id[:64]!r}: it was completed, refused, or left for a day; begin another")
