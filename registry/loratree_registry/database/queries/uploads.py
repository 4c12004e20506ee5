"""Queries of uploads that clients send directly to the store."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from loratree_registry.blobs.store import Transfer
from loratree_registry.core.times import now
from loratree_registry.database.tables import uploads


def insert_upload(connection: Connection, transfer: Transfer) -> None:
    """Insert an upload, so that every worker knows it."""
    connection.execute(
        insert(uploads).values(id=transfer.id, sha256=transfer.digest, size=transfer.size, multipart=transfer.multipart)
    )


def touch_upload(connection: Connection, id: str) -> Transfer | None:  # noqa: A002 - the field's name
    """Return an upload by its id, or None, and record that its client continues."""
    touched = update(uploads).where(uploads.c.id == id).values(touched_at=now()).returning(*uploads.c)
    row = connection.execute(touched).one_or_none()
    return None if row is None else _to_transfer(row)


def find_upload(connection: Connection, id: str) -> Transfer | None:  # noqa: A002 - the field's name
    """Return an upload by its id, or None."""
    return _find_newest(connection, uploads.c.id == id)


def find_resumable(connection: Connection, sha256: str, size: int, *, since: datetime) -> Transfer | None:
    """Return the newest multipart upload of the same bytes that a client has used after `since`, or None."""
    same = (uploads.c.sha256 == sha256) & (uploads.c.size == size) & uploads.c.multipart.is_not(None)
    return _find_newest(connection, same & (uploads.c.touched_at > since))


def list_uploads(connection: Connection, *, before: datetime) -> list[Transfer]:
    """Return the uploads that no client has used since `before`. Each needs a client's request, so they are few."""
    query = select(uploads).where(uploads.c.touched_at < before).order_by(uploads.c.id)
    return [_to_transfer(row) for row in connection.execute(query)]


def upload_ids(connection: Connection) -> set[str]:
    """Return the ids of all uploads."""
    return set(connection.scalars(select(uploads.c.id)))


def end_upload(connection: Connection, id: str, *, before: datetime) -> bool:  # noqa: A002 - the field's name
    """Delete an upload if no client has used it since `before`. Return whether it was deleted."""
    idle = (uploads.c.id == id) & (uploads.c.touched_at < before)
    return connection.execute(delete(uploads).where(idle)).rowcount == 1


def delete_upload(connection: Connection, id: str) -> None:  # noqa: A002 - the field's name
    """Delete an upload, or do nothing if it does not exist."""
    connection.execute(delete(uploads).where(uploads.c.id == id))


def _find_newest(connection: Connection, which: ColumnElement[bool]) -> Transfer | None:
    query = select(uploads).where(which).order_by(uploads.c.touched_at.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else _to_transfer(row)


def _to_transfer(row: Any) -> Transfer:
    return Transfer(id=row.id, digest=row.sha256, size=row.size, multipart=row.multipart)
