"""Garbage collection of blobs and unfinished uploads, safe while others publish; docs/decisions/0010 says why.

First a transaction condemns the row of each unused blob, so that no new version can refer to the blob. Then another
transaction locks the row, removes the bytes and last the row. After a kill at any point, the next run continues.

Three ages protect what is still in use:

- the grace (`gc --grace`, 24 hours by default) protects a blob that an upload, a version or a deletion used within it,
  and the files of an unfinished upload;
- UPLOAD_AGE (1 hour) protects the files of an unfinished upload even if the grace is shorter;
- LIFETIME_S (24 hours, core/uploads.py) is how long an idle upload can be resumed. The server removes an older one from
  its folder without `gc`, within an hour.
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
from loratree_registry.core.progress import Counter, Progress, silent
from loratree_registry.core.times import now
from loratree_registry.database import queries
from loratree_registry.database.engine import freeing, reading
from loratree_registry.database.rows import BlobRow, Waiting
from loratree_registry.embedded.staged_uploads import expire
from loratree_registry.embedded.storage import Storage
from loratree_registry.errors import Unavailable, listed
from loratree_registry.workspace.base_locations import BASES, sweep_bases
from loratree_registry.workspace.cache import CACHE, open_cache

PAGE: Final = 500
UPLOAD_AGE: Final = timedelta(hours=1)  # parts and temporary files are no blobs yet: only their age protects them


@dataclass(frozen=True, slots=True)
class Collected:
    """A removal, done or only planned by a dry run: a blob by digest and size, or an upload's leftover by name."""

    kind: Literal["blob", "upload"]
    name: str
    size: int = 0


def collect(
    storage: Storage, uploads: Path, *, grace: timedelta, dry_run: bool = False, progress: Progress = silent
) -> Iterator[Collected]:
    """Remove blobs that nothing refers to and nobody used for `grace`, and uploads that were abandoned.

    `uploads` is the folder of staged uploads. Yields each removed thing as it goes; a dry run removes nothing. Several
    runs may overlap. Raises Unavailable; if only some things could not be removed, it does so at the end.
    """
    engine, blobs, before = storage.engine, storage.blobs, now() - grace
    failures = _Failures()
    yield from _remove_leftovers(storage, uploads, failures, before=now() - max(grace, UPLOAD_AGE), dry_run=dry_run)
    if dry_run:
        yield from _list_removable(engine, blobs, before, progress)
    else:
        yield from _remove_blobs(engine, blobs, before, failures, progress)
    failures.raise_any()


def count_waiting(storage: Storage, *, grace: timedelta) -> Waiting:
    """Count the blobs that nothing refers to, and that `collect` with this grace leaves for now. Raises Unavailable."""
    with reading(storage.engine) as connection:
        return queries.collecting.count_waiting(connection, since=now() - grace)


class _Failures:
    """The failed removals, collected so that one failure does not stop the other removals."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        """Note an Unavailable that the block raises, and continue after the block."""
        try:
            yield
        except Unavailable as error:
            self.note(name, error)

    def note(self, name: str, error: Unavailable) -> None:
        """Note that `name` could not be removed, and why."""
        self._reasons[name] = str(error)

    def raise_any(self) -> None:
        """Raise Unavailable with the first reason if anything was noted."""
        if self._reasons:
            reason = next(iter(self._reasons.values()))
            raise Unavailable(f"these could not be removed, all others were: {listed(list(self._reasons))}; {reason}")


def _remove_blobs(
    engine: Engine, blobs: BlobStore, before: datetime, failures: _Failures, progress: Progress
) -> Iterator[Collected]:
    _condemn_idle(engine, before)
    _condemn_orphans(engine, blobs, before, progress)
    with reading(engine) as connection:
        counter = Counter(progress, "removing", queries.collecting.count_condemned(connection), "files")
    for blob in _list_condemned(engine):
        try:
            if _remove(engine, blobs, blob.sha256):
                yield Collected("blob", blob.sha256, blob.size)
        except Unavailable as error:
            failures.note(blob.sha256, error)
            blobs.size(blob.sha256)  # raises if the store does not answer at all, so the other blobs are not tried
        counter.add()


def _list_removable(engine: Engine, blobs: BlobStore, before: datetime, progress: Progress) -> Iterator[Collected]:
    for page in _list_idle(engine, before):
        yield from (Collected("blob", blob.sha256, blob.size) for blob in page)
    for orphans in _list_orphans(engine, blobs, before, progress):
        yield from (Collected("blob", orphan.digest, orphan.size) for orphan in orphans)
    yield from (Collected("blob", blob.sha256, blob.size) for blob in _list_condemned(engine))


def _condemn_idle(engine: Engine, before: datetime) -> None:
    for page in _list_idle(engine, before):
        with freeing(engine) as connection:
            queries.collecting.condemn(connection, [blob.sha256 for blob in page], before=before)


def _condemn_orphans(engine: Engine, blobs: BlobStore, before: datetime, progress: Progress) -> None:
    """Insert a condemned row for each object without a row, so that there is a row to lock."""
    for orphans in _list_orphans(engine, blobs, before, progress):
        with freeing(engine) as connection:
            queries.collecting.condemn_orphans(connection, orphans)


def _remove(engine: Engine, blobs: BlobStore, sha256: str) -> bool:
    """Remove condemned bytes and then their row, with the row locked; return False if a new lease has saved them.

    The bytes are removed inside the transaction: otherwise an upload could lease the row and put the bytes again first,
    and this call would remove them. On SQLite, all writers wait until the store answers. This is accepted: a request to
    S3 ends after about 26 seconds at most (blobs/s3/client.py), and a writer waits for 30.
    """
    with freeing(engine) as connection:
        if not queries.collecting.hold_condemned(connection, sha256):
            return False
        blobs.delete(sha256)
        queries.collecting.delete_blob(connection, sha256)
    return True


def _list_idle(engine: Engine, before: datetime) -> Iterator[list[BlobRow]]:
    after = ""
    while True:
        with reading(engine) as connection:
            page = queries.collecting.list_idle(connection, before=before, after=after, limit=PAGE)
        if not page:
            return
        yield page
        after = page[-1].sha256


def _list_condemned(engine: Engine) -> Iterator[BlobRow]:
    after = ""
    while True:
        with reading(engine) as connection:
            page = queries.collecting.list_condemned(connection, after=after, limit=PAGE)
        if not page:
            return
        yield from page
        after = page[-1].sha256


def _list_orphans(engine: Engine, blobs: BlobStore, before: datetime, progress: Progress) -> Iterator[list[StoredBlob]]:
    counter = Counter(progress, "looking through the stored files", 0, "files")
    old = (blob for blob in blobs.list_blobs() if blob.modified < before)
    while page := list(islice(old, PAGE)):
        with reading(engine) as connection:
            orphans = queries.collecting.without_row(connection, page)
        counter.add(len(page))
        yield orphans


def _remove_leftovers(
    storage: Storage, uploads: Path, failures: _Failures, *, before: datetime, dry_run: bool
) -> Iterator[Collected]:
    """Remove the leftovers of uploads that nobody continued since `before`."""
    names = _end_transfers(storage, failures, before=before, dry_run=dry_run)
    names |= _sweep_home(uploads.parent, failures, before=before, dry_run=dry_run)
    names |= {f"uploads/{name}" for name in expire(uploads, before=before, dry_run=dry_run)}
    # The ids are read before the sweep, so that it keeps each upload that a client may continue; an upload that begins
    # after this read is too young for the sweep.
    with reading(storage.engine) as connection:
        unfinished = {f"uploads/{name}" for name in queries.uploads.upload_ids(connection)}
    with failures.noting("leftovers of uploads in the blob store"):
        names |= set(storage.blobs.sweep(before=before, keep=unfinished, dry_run=dry_run))
    yield from (Collected("upload", name) for name in sorted(names))


def _sweep_home(home: Path, failures: _Failures, *, before: datetime, dry_run: bool) -> set[str]:
    """Remove what killed downloads and `base add` left in HOME; return the names."""
    cache = open_cache(home)
    names: set[str] = set()
    with failures.noting("leftovers of downloads in the cache"):
        names |= {f"{CACHE}/{name}" for name in cache.sweep(before=before, dry_run=dry_run)}
        names |= {f"{BASES}/{name}" for name in sweep_bases(home, before=before, dry_run=dry_run)}
    return names


def _end_transfers(storage: Storage, failures: _Failures, *, before: datetime, dry_run: bool) -> set[str]:
    """End idle uploads that clients send to the store themselves, each in the database first; return their names."""
    with reading(storage.engine) as connection:
        idle = queries.uploads.list_uploads(connection, before=before)
    return {f"uploads/{upload.id}" for upload in idle if dry_run or _end_transfer(storage, failures, upload, before)}


def _end_transfer(storage: Storage, failures: _Failures, transfer: Transfer, before: datetime) -> bool:
    """End an upload; return False if a client has continued it. The next sweep removes any bytes that stay."""
    with freeing(storage.engine) as connection:
        ended = queries.uploads.end_upload(connection, transfer.id, before=before)
    if ended and isinstance(storage.blobs, DirectStore):
        with failures.noting(f"uploads/{transfer.id}"):
            storage.blobs.give_up(transfer)
    return ended
