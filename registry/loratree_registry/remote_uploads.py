"""Uploads to a server, over HTTP."""

from typing import IO

from loratree_registry.api.bodies import NewUpload, Stored
from loratree_registry.uploading import Part, Upload
from loratree_registry.wire import Wire, work_s


class RemoteUploads:
    """The Uploads behind a server."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def begin(self, sha256: str, size: int) -> Upload:
        """See Uploads.begin."""
        return self._wire.send(Upload, "POST", "uploads", record=NewUpload(sha256=sha256, size=size))

    def find(self, id: str) -> Upload:  # noqa: A002 - the field's name
        """See Uploads.find."""
        return self._wire.get(Upload, "uploads", id)

    def part(self, id: str, number: int) -> Part:  # noqa: A002 - the field's name
        """See Uploads.part."""
        return self._wire.get(Part, "uploads", f"{id}/parts/{number}")

    def put(self, id: str, part: Part, content: IO[bytes]) -> None:  # noqa: A002, ARG002 - the URL says whose it is
        """See ClientUploads.put."""
        self._wire.put_part(part, content)

    def complete(self, upload: Upload) -> None:
        """See Uploads.complete."""
        path = f"{upload.id}/complete"
        self._wire.send(Stored, "POST", "uploads", path, record=None, seconds=work_s(upload.size))

    def give_up(self, id: str) -> None:  # noqa: A002 - the field's name
        """See Uploads.give_up."""
        self._wire.delete("uploads", id)
