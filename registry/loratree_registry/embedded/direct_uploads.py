"""Bytes that clients send to the store and read from it themselves: the edge where their transactions open and end."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import IO
from uuid import uuid4

from sqlalchemy import Engine
from typing_extensions import override

from loratree_registry.blobs.store import PART, DirectStore, ReadBack, Transfer
from loratree_registry.blobs.verified import check_announced
from loratree_registry.catalog import files
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.times import now
from loratree_registry.core.uploads import LIFETIME_S, ClientUploads, Part, Upload, unknown_upload
from loratree_registry.database import queries
from loratree_registry.database.engine import reading, writing
from loratree_registry.errors import Invalid, NotFound

# Gives what looks at the bytes of a digest and a size as they are read back, and keeps it where the block ends well.
Looking = Callable[[str, int], AbstractContextManager[ReadBack]]


class DirectUploads(ClientUploads):
    """Uploads to a store by presigned URLs, known to every worker by the database, and downloads from it."""

    def __init__(self, engine: Engine, store: DirectStore, looking: Looking) -> None:
        self._engine, self._store, self._looking = engine, store, looking

    @override
    def begin(self, sha256: str, size: int) -> Upload:
        check_announced(sha256, size)
        if size > PART and (known := self._resumed(sha256, size)):
            return known
        transfer = self._store.begin(uuid4().hex, sha256, size)
        with writing(self._engine) as connection:
            queries.uploads.insert_upload(connection, transfer)
        return self._told(transfer, set())

    @override
    def find(self, id: str) -> Upload:
        transfer = self._transfer(id)
        return self._told(transfer, self._store.arrived(transfer))

    @override
    def part(self, id: str, number: int) -> Part:
        return self._part(self._touched(id), number)

    @override
    def put(self, id: str, part: Part, content: IO[bytes]) -> None:
        self._store.put_part(self._transfer(id), part.number, content)

    @override
    def complete(self, upload: Upload) -> None:
        transfer = self._touched(upload.id)
        with writing(self._engine) as connection:
            lease = queries.blobs.lease_blob(connection, transfer.digest, transfer.size)
        try:
            with self._looking(transfer.digest, transfer.size) as look:
                self._store.accept(transfer, read_back=look)
        except Invalid:
            self._forget(upload.id)
            raise
        # The bytes before what says that they are stored: the database is never ahead of them.
        with writing(self._engine) as connection:
            files.record_stored(connection, transfer.digest, transfer.size, lease)
            queries.uploads.delete_upload(connection, upload.id)

    @override
    def give_up(self, id: str) -> None:
        self._store.give_up(self._transfer(id))
        self._forget(id)

    def link(self, file: FileDigest) -> str:
        """A presigned URL that reads a file. Raises Corrupt where the store has lost or cut it."""
        files.check_held(self._store, file)
        return self._store.link(file.sha256)

    def _resumed(self, sha256: str, size: int) -> Upload | None:
        """The upload of those bytes that goes on; None where there is none, or the store has given it up."""
        since = now() - timedelta(seconds=LIFETIME_S)
        with reading(self._engine) as connection:
            transfer = queries.uploads.find_resumable(connection, sha256, size, since=since)
        if transfer is None:
            return None
        try:
            return self._told(self._touched(transfer.id), self._store.arrived(transfer))
        except NotFound:
            self._forget(transfer.id)
            return None

    def _transfer(self, id: str) -> Transfer:  # noqa: A002 - the field's name
        with reading(self._engine) as connection:
            transfer = queries.uploads.find_upload(connection, id)
        if transfer is None:
            raise unknown_upload(id)
        return transfer

    def _touched(self, id: str) -> Transfer:  # noqa: A002 - the field's name
        """The same, where somebody goes on with it: it is not collected then."""
        with writing(self._engine) as connection:
            transfer = queries.uploads.touch_upload(connection, id)
        if transfer is None:
            raise unknown_upload(id)
        return transfer

    def _forget(self, id: str) -> None:  # noqa: A002 - the field's name
        with writing(self._engine) as connection:
            queries.uploads.delete_upload(connection, id)

    def _told(self, transfer: Transfer, arrived: set[int]) -> Upload:
        left = next((number for number in range(1, transfer.parts + 1) if number not in arrived), None)
        return Upload(
            id=transfer.id,
            sha256=transfer.digest,
            size=transfer.size,
            part_size=PART,
            parts=transfer.parts,
            arrived=sorted(arrived),
            next=self._part(transfer, left) if left else None,
        )

    def _part(self, transfer: Transfer, number: int) -> Part:
        target = self._store.target(transfer, number)
        return Part(number=number, url=target.url, headers=dict(target.headers))
