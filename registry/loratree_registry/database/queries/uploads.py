"""Queries of uploads: bytes on their way to a store that clients send to themselves."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from loratree_registry.blobs.store import Transfer
from loratree_registry.core.times import now
from loratree_registry.database.tables import uploads


def insert_upload(connection: Connection, transfer: Transfer) -> None:
    """Inserts an upload, so that every worker knows it."""
    connection.execute(
        insert(uploads).values(id=transfer.id, sha256=transfer.digest, size=transfer.size, multipart=transfer.multipart)
    )


def touch_upload(connection: Connection, id: str) -> Transfer | None:  # noqa: A002 - the field's name
    """An upload by its id, which somebody goes on with."""
    touched = update(uploads).where(uploads.c.id == id).values(touched_at=now()).returning(*uploads.c)
    row = connection.execute(touched).one_or_none()
    return None if row is None else _transfer(row)


def find_upload(connection: Connection, id: str) -> Transfer | None:  # noqa: A002 - the field's name
    """An upload by its id."""
    return _one(connection, uploads.c.id == id)


def find_resumable(connection: Connection, sha256: str, size: int, *, since: datetime) -> Transfer | None:
    """The newest upload of those bytes in several parts that somebody went on with after a moment."""
    same = (uploads.c.sha256 == sha256) & (uploads.c.size == size) & uploads.c.multipart.is_not(None)
    return _one(connection, same & (uploads.c.touched_at > since))


def list_uploads(connection: Connection, *, before: datetime) -> list[Transfer]:
    """The uploads left since a moment; each is a request of somebody's, so there are never many."""
    query = select(uploads).where(uploads.c.touched_at < before).order_by(uploads.c.id)
    return [_transfer(row) for row in connection.execute(query)]


def upload_ids(connection: Connection) -> set[str]:
    """The ids of all uploads."""
    return set(connection.scalars(select(uploads.c.id)))


def end_upload(connection: Connection, id: str, *, before: datetime) -> bool:  # noqa: A002 - the field's name
    """Removes an upload if it is still one that was left since a moment; tells whether it was."""
    left = (uploads.c.id == id) & (uploads.c.touched_at < before)
    return connection.execute(delete(uploads).where(left)).rowcount == 1


def delete_upload(connection: Connection, id: str) -> None:  # noqa: A002 - the field's name
    """Removes an upload; one that is not there is no error."""
    connection.execute(delete(uploads).where(uploads.c.id == id))


def _one(connection: Connection, which: ColumnElement[bool]) -> Transfer | None:
    query = select(uploads).where(which).order_by(uploads.c.touched_at.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return None if row is None else _transfer(row)


def _transfer(row: Any) -> Transfer:
    return Transfer(id=row.id, digest=row.sha256, size=row.size, multipart=row.multipart)
