"""Queries of collecting: which bytes nothing needs, and their way out by way of condemned rows."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, select, update

from loratree_registry.blobs.store import StoredBlob
from loratree_registry.core.times import now
from loratree_registry.database.queries.shared import insert_for
from loratree_registry.database.rows import BlobRow
from loratree_registry.database.tables import base_files, blobs, version_files

_condemned = blobs.c.state == "condemned"
_unreferenced = and_(
    *(
        ~select(table.c.sha256).where(table.c.sha256 == blobs.c.sha256).correlate(blobs).exists()
        for table in (version_files, base_files)
    )
)


def list_idle(connection: Connection, *, before: datetime, after: str, limit: int) -> list[BlobRow]:
    """Bytes that nothing refers to and nothing had to do with since `before`, by digest."""
    return _listed(connection, _idle(before), after, limit)


def condemn(connection: Connection, digests: list[str], *, before: datetime) -> None:
    """Condemns those bytes that are idle still; what another transaction has locked is left alone.

    Two statements: what was committed before the first one held the rows is seen by the second, and by no recheck of
    the first, as a row that was only locked by others is not looked at again.
    """
    locked = select(blobs.c.sha256).where(blobs.c.sha256.in_(digests)).order_by(blobs.c.sha256)
    held = list(connection.scalars(locked.with_for_update(skip_locked=True)))
    connection.execute(update(blobs).where(blobs.c.sha256.in_(held), _idle(before)).values(state="condemned"))


def without_row(connection: Connection, held: list[StoredBlob]) -> list[StoredBlob]:
    """Those stored objects that no row knows."""
    known = set(connection.scalars(select(blobs.c.sha256).where(blobs.c.sha256.in_([one.digest for one in held]))))
    return [one for one in held if one.digest not in known]


def condemn_orphans(connection: Connection, orphans: Iterable[StoredBlob]) -> None:
    """Gives stored objects that no row knows a condemned one, unless an upload was first to give them its own."""
    rows = [{"sha256": o.digest, "size": o.size, "state": "condemned", "touched_at": now()} for o in orphans]
    if rows:
        connection.execute(insert_for(connection)(blobs).values(rows).on_conflict_do_nothing())


def list_condemned(connection: Connection, *, after: str, limit: int) -> list[BlobRow]:
    """The condemned bytes, by digest."""
    return _listed(connection, _condemned, after, limit)


def hold_condemned(connection: Connection, sha256: str) -> bool:
    """Holds a condemned row until the transaction ends; False where it was saved, or another holds it."""
    here = blobs.c.sha256 == sha256
    held = select(blobs.c.sha256).where(here, _condemned).with_for_update(skip_locked=True)
    if connection.scalar(held) is None:
        return False
    return connection.scalar(select(blobs.c.sha256).where(here, _condemned, _unreferenced)) is not None


def delete_blob(connection: Connection, sha256: str) -> None:
    """Removes a row, whose bytes are removed already."""
    connection.execute(delete(blobs).where(blobs.c.sha256 == sha256))


def _idle(before: datetime) -> ColumnElement[bool]:
    return and_(~_condemned, blobs.c.touched_at < before, _unreferenced)


def _listed(connection: Connection, which: ColumnElement[bool], after: str, limit: int) -> list[BlobRow]:
    query = select(blobs.c.sha256, blobs.c.size).where(which, blobs.c.sha256 > after).order_by(blobs.c.sha256)
    return [BlobRow(row.sha256, row.size) for row in connection.execute(query.limit(limit))]
