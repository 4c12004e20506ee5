"""Collecting: bytes that nothing needs are removed, while others publish; docs/decisions/0010 tells why it is safe.

Each step has its own short transactions, so that a kill at any point leaves what the next run goes on with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from sqlalchemy import Engine

from loratree_registry.blobs.store import BlobStore, DirectStore, StoredBlob, Transfer
from loratree_registry.core.times import now
from loratree_registry.database import queries
from loratree_registry.database.engine import reading, writing
from loratree_registry.database.rows import BlobRow
from loratree_registry.embedded.staged_uploads import expire
from loratree_registry.embedded.storage import Storage
from loratree_registry.errors import Unavailable, listed

PAGE: Final = 500
UPLOAD: Final = timedelta(hours=1)  # what is on its way in has no lease in the store, so it is left for this long


@dataclass(frozen=True, slots=True)
class Collected:
    """Something that was removed, or would be: bytes by their digest and size, or what an upload left by its name."""

    kind: Literal["blob", "upload"]
    name: str
    size: int = 0


def collect(storage: Storage, uploads: Path, *, grace: timedelta, dry_run: bool = False) -> Iterator[Collected]:
    """Removes bytes that nothing refers to and nothing had to do with for `grace`, and uploads that ended nowhere.

    `uploads` is the folder of uploads on their way in. Yields what it removes as it goes; a dry run removes nothing.
    Several may run at once. Raises Unavailable, at the end where something could not be removed: the rest was.
    """
    engine, blobs, before = storage.engine, storage.blobs, now() - grace
    failures = _Failures()
    yield from _give_up(storage, uploads, failures, before=now() - max(grace, UPLOAD), dry_run=dry_run)
    if dry_run:
        yield from _would_go(engine, blobs, before)
    else:
        yield from _go(engine, blobs, before, failures)
    failures.tell()


class _Failures:
    """What could not be removed, so that it does not keep the rest from being removed."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Notes that the block raised Unavailable, and goes on."""
        try:
            yield
        except Unavailable as error:
            self.note(name, error)

    def note(self, name: str, error: Unavailable) -> None:
        """Notes that something could not be removed, and why."""
        self._said[name] = str(error)

    def tell(self) -> None:
        """Raises Unavailable where there are any, with the first one's reason."""
        if self._said:
            reason = next(iter(self._said.values()))
            raise Unavailable(f"these could not be removed, and all else was: {listed(list(self._said))}; {reason}")


def _go(engine: Engine, blobs: BlobStore, before: datetime, failures: _Failures) -> Iterator[Collected]:
    _condemn_idle(engine, before)
    _condemn_orphans(engine, blobs, before)
    for blob in _condemned(engine):
        try:
            if _remove(engine, blobs, blob.sha256):
                yield Collected("blob", blob.sha256, blob.size)
        except Unavailable as error:
            failures.note(blob.sha256, error)
            blobs.size(blob.sha256)  # where the store does not answer at all, the others need not be tried


def _would_go(engine: Engine, blobs: BlobStore, before: datetime) -> Iterator[Collected]:
    for page in _idle(engine, before):
        yield from (Collected("blob", blob.sha256, blob.size) for blob in page)
    for orphans in _orphans(engine, blobs, before):
        yield from (Collected("blob", orphan.digest, orphan.size) for orphan in orphans)
    yield from (Collected("blob", blob.sha256, blob.size) for blob in _condemned(engine))


def _condemn_idle(engine: Engine, before: datetime) -> None:
    for page in _idle(engine, before):
        with writing(engine) as connection:
            queries.collecting.condemn(connection, [blob.sha256 for blob in page], before=before)


def _condemn_orphans(engine: Engine, blobs: BlobStore, before: datetime) -> None:
    """Gives objects without a row a condemned one, so that there is something to lock."""
    for orphans in _orphans(engine, blobs, before):
        with writing(engine) as connection:
            queries.collecting.condemn_orphans(connection, orphans)


def _remove(engine: Engine, blobs: BlobStore, sha256: str) -> bool:
    """Removes condemned bytes and then their row, holding the row; False where a lease has saved them."""
    with writing(engine) as connection:
        if not queries.collecting.hold_condemned(connection, sha256):
            return False
        blobs.delete(sha256)
        queries.collecting.delete_blob(connection, sha256)
    return True


def _idle(engine: Engine, before: datetime) -> Iterator[list[BlobRow]]:
    after = ""
    while True:
        with reading(engine) as connection:
            page = queries.collecting.list_idle(connection, before=before, after=after, limit=PAGE)
        if not page:
            return
        yield page
        after = page[-1].sha256


def _condemned(engine: Engine) -> Iterator[BlobRow]:
    after = ""
    while True:
        with reading(engine) as connection:
            page = queries.collecting.list_condemned(connection, after=after, limit=PAGE)
        if not page:
            return
        yield from page
        after = page[-1].sha256


def _orphans(engine: Engine, blobs: BlobStore, before: datetime) -> Iterator[list[StoredBlob]]:
    old = (held for held in blobs.list_blobs() if held.modified < before)
    while page := list(islice(old, PAGE)):
        with reading(engine) as connection:
            orphans = queries.collecting.without_row(connection, page)
        yield orphans


def _give_up(
    storage: Storage, uploads: Path, failures: _Failures, *, before: datetime, dry_run: bool
) -> Iterator[Collected]:
    """What uploads left that nobody went on with since a moment."""
    names = _transfers(storage, failures, before=before, dry_run=dry_run)
    names |= {f"uploads/{name}" for name in expire(uploads, before=before, dry_run=dry_run)}
    with reading(storage.engine) as connection:
        going_on = {f"uploads/{name}" for name in queries.uploads.upload_ids(connection)}
    with failures.noting("what uploads left in the blob store"):
        names |= set(storage.blobs.sweep(before=before, keep=going_on, dry_run=dry_run))
    yield from (Collected("upload", name) for name in sorted(names))


def _transfers(storage: Storage, failures: _Failures, *, before: datetime, dry_run: bool) -> set[str]:
    """The uploads that clients send to the store themselves; each ends in the database before its bytes go."""
    with reading(storage.engine) as connection:
        found = queries.uploads.list_uploads(connection, before=before)
    return {f"uploads/{transfer.id}" for transfer in found if dry_run or _end(storage, failures, transfer, before)}


def _end(storage: Storage, failures: _Failures, transfer: Transfer, before: datetime) -> bool:
    """Ends an upload, whose bytes the next sweep takes where they stay; False where somebody has gone on with it."""
    with writing(storage.engine) as connection:
        ended = queries.uploads.end_upload(connection, transfer.id, before=before)
    if ended and isinstance(storage.blobs, DirectStore):
        with failures.noting(f"uploads/{transfer.id}"):
            storage.blobs.give_up(transfer)
    return ended
