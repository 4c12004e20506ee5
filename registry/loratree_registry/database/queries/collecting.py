"""Queries of collecting: one transaction condemns the blobs that nothing refers to, later ones remove them.

A collector looks at references and at `touched_at`, never at a lease. No version can refer to a condemned blob, but an
upload of the same bytes can still save it by a new lease.
"""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, func, select, update

from loratree_registry.blobs.store import StoredBlob
from loratree_registry.core.times import now
from loratree_registry.database.queries.shared import insert_for
from loratree_registry.database.rows import BlobRow, Waiting
from loratree_registry.database.tables import base_files, blobs, version_files

_condemned = blobs.c.state == "condemned"
_unreferenced = and_(
    *(
        ~select(table.c.sha256).where(table.c.sha256 == blobs.c.sha256).correlate(blobs).exists()
        for table in (version_files, base_files)
    )
)


def list_idle(connection: Connection, *, before: datetime, after: str, limit: int) -> list[BlobRow]:
    """Return the blobs that nothing refers to and nothing has used since `before`, by digest."""
    return _list(connection, _is_idle(before), after, limit)


def count_waiting(connection: Connection, *, since: datetime) -> Waiting:
    """Count the blobs that nothing refers to and that something has used since a moment."""
    query = select(func.count(), func.sum(blobs.c.size), func.min(blobs.c.touched_at), func.max(blobs.c.touched_at))
    which = and_(~_condemned, blobs.c.touched_at >= since, _unreferenced)
    count, size, first, last = connection.execute(query.select_from(blobs).where(which)).one()
    return Waiting(count, int(size or 0), first, last)


def condemn(connection: Connection, digests: list[str], *, before: datetime) -> None:
    """Condemn the blobs among `digests` that are still idle, except rows that another transaction has locked.

    Two statements: the second one sees all that was committed before the first one locked the rows. PostgreSQL does
    not check a row again within one statement if another transaction only locked the row.
    """
    query = select(blobs.c.sha256).where(blobs.c.sha256.in_(digests)).order_by(blobs.c.sha256)
    locked = list(connection.scalars(query.with_for_update(skip_locked=True)))
    connection.execute(update(blobs).where(blobs.c.sha256.in_(locked), _is_idle(before)).values(state="condemned"))


def without_row(connection: Connection, held: list[StoredBlob]) -> list[StoredBlob]:
    """Return the objects among `held`, all in the store, that have no row in the database."""
    known = set(connection.scalars(select(blobs.c.sha256).where(blobs.c.sha256.in_([blob.digest for blob in held]))))
    return [blob for blob in held if blob.digest not in known]


def condemn_orphans(connection: Connection, orphans: Iterable[StoredBlob]) -> None:
    """Insert a condemned row for each object without a row, unless an upload has inserted a row first."""
    rows = [{"sha256": o.digest, "size": o.size, "state": "condemned", "touched_at": now()} for o in orphans]
    if rows:
        connection.execute(insert_for(connection)(blobs).values(rows).on_conflict_do_nothing())


def count_condemned(connection: Connection) -> int:
    """Return the number of condemned blobs."""
    return connection.scalar(select(func.count()).select_from(blobs).where(_condemned)) or 0


def list_condemned(connection: Connection, *, after: str, limit: int) -> list[BlobRow]:
    """Return the condemned blobs, by digest."""
    return _list(connection, _condemned, after, limit)


def hold_condemned(connection: Connection, sha256: str) -> bool:
    """Lock a condemned row until the transaction ends. Return False if the blob was saved, or another has locked it.

    Nothing should refer to a condemned blob. References are checked again all the same, because removed bytes cannot
    come back.
    """
    here = blobs.c.sha256 == sha256
    query = select(blobs.c.sha256).where(here, _condemned).with_for_update(skip_locked=True)
    if connection.scalar(query) is None:
        return False
    return connection.scalar(select(blobs.c.sha256).where(here, _condemned, _unreferenced)) is not None


def delete_blob(connection: Connection, sha256: str) -> None:
    """Delete a blob's row; its bytes must be removed from the store already."""
    connection.execute(delete(blobs).where(blobs.c.sha256 == sha256))


def _is_idle(before: datetime) -> ColumnElement[bool]:
    return and_(~_condemned, blobs.c.touched_at < before, _unreferenced)


def _list(connection: Connection, which: ColumnElement[bool], after: str, limit: int) -> list[BlobRow]:
    query = select(blobs.c.sha256, blobs.c.size).where(which, blobs.c.sha256 > after).order_by(blobs.c.sha256)
    return [BlobRow(row.sha256, row.size) for row in connection.execute(query.limit(limit))]
