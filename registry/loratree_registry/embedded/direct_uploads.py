"""Uploads and downloads that go from a client directly to the store; their transactions begin and end here."""

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
from loratree_registry.embedded.removed import telling_removed
from loratree_registry.errors import Invalid, NotFound

# Inspections.keeping: yields the function to run over the bytes that are read back, and keeps its result if the block
# succeeds.
Inspecting = Callable[[str, int], AbstractContextManager[ReadBack]]


class DirectUploads(ClientUploads):
    """Uploads to a store by presigned URLs, which every worker finds in the database, and downloads from it."""

    def __init__(self, engine: Engine, store: DirectStore, inspecting: Inspecting) -> None:
        self._engine, self._store, self._inspecting = engine, store, inspecting

    @override
    def begin(self, sha256: str, size: int) -> Upload:
        check_announced(sha256, size)
        if size > PART and (known := self._resume(sha256, size)):
            return known
        transfer = self._store.begin(uuid4().hex, sha256, size)
        with writing(self._engine) as connection:
            queries.uploads.insert_upload(connection, transfer)
        return self._describe(transfer, set())

    @override
    def find(self, id: str) -> Upload:
        transfer = self._find_transfer(id)
        return self._describe(transfer, self._store.arrived(transfer))

    @override
    def part(self, id: str, number: int) -> Part:
        return self._sign_part(self._touch(id), number)

    @override
    def put(self, id: str, part: Part, content: IO[bytes]) -> None:
        self._store.put_part(self._find_transfer(id), part.number, content)

    @override
    def complete(self, upload: Upload) -> None:
        transfer = self._touch(upload.id)
        with writing(self._engine) as connection:
            lease = queries.blobs.lease_blob(connection, transfer.digest, transfer.size)
        try:
            with self._inspecting(transfer.digest, transfer.size) as inspect_bytes:
                self._store.accept(transfer, read_back=inspect_bytes)
        except (Invalid, NotFound):
            self._forget(upload.id)
            raise
        # The bytes come before the row that records them: the database is never ahead of the store.
        with writing(self._engine) as connection:
            files.record_stored(connection, transfer.digest, transfer.size, lease)
            queries.uploads.delete_upload(connection, upload.id)

    @override
    def give_up(self, id: str) -> None:
        self._store.give_up(self._find_transfer(id))
        self._forget(id)

    def link(self, file: FileDigest, *, head: bool = False) -> str:
        """Return a presigned URL that reads a file, or asks for its headers by HEAD if `head` is set.

        Raises Corrupt if the store has lost the file or a part of it, Unavailable if a collection removed it.
        """
        with telling_removed(self._engine, file):
            files.check_held(self._store, file)
        return self._store.link(file.sha256, head=head)

    def _resume(self, sha256: str, size: int) -> Upload | None:
        """Resume an upload of these bytes, or return None if there is no upload or the store has dropped it."""
        since = now() - timedelta(seconds=LIFETIME_S)
        with reading(self._engine) as connection:
            transfer = queries.uploads.find_resumable(connection, sha256, size, since=since)
        if transfer is None:
            return None
        try:
            return self._describe(self._touch(transfer.id), self._store.arrived(transfer))
        except NotFound:
            self._forget(transfer.id)
            return None

    def _find_transfer(self, id: str) -> Transfer:  # noqa: A002 - the field's name
        with reading(self._engine) as connection:
            transfer = queries.uploads.find_upload(connection, id)
        if transfer is None:
            raise unknown_upload(id)
        return transfer

    def _touch(self, id: str) -> Transfer:  # noqa: A002 - the field's name
        """Find a transfer and renew its time, so that an upload in use is not collected."""
        with writing(self._engine) as connection:
            transfer = queries.uploads.touch_upload(connection, id)
        if transfer is None:
            raise unknown_upload(id)
        return transfer

    def _forget(self, id: str) -> None:  # noqa: A002 - the field's name
        with writing(self._engine) as connection:
            queries.uploads.delete_upload(connection, id)

    def _describe(self, transfer: Transfer, arrived: set[int]) -> Upload:
        missing = next((number for number in range(1, transfer.parts + 1) if number not in arrived), None)
        return Upload(
            id=transfer.id,
            sha256=transfer.digest,
            size=transfer.size,
            part_size=PART,
            parts=transfer.parts,
            arrived=sorted(arrived),
            next=self._sign_part(transfer, missing) if missing else None,
        )

    def _sign_part(self, transfer: Transfer, number: int) -> Part:
        target = self._store.target(transfer, number)
        return Part(number=number, url=target.url, headers=dict(target.headers))
