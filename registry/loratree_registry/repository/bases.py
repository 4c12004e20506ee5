"""Queries of bases."""

from typing import Any

from sqlalchemy import Connection, exists, select

from loratree_registry.models import base_files, bases
from loratree_registry.repository.shared import insert_new, past
from loratree_registry.rows import BaseRow

_STORED = exists().where(base_files.c.base_id == bases.c.id).label("stored")
_BASE = select(*(column for column in bases.c if column is not bases.c.manifest), _STORED)


def insert_base(connection: Connection, **values: Any) -> int | None:
    """Inserts a base; None where its name is taken."""
    key: int | None = insert_new(connection, bases, values)
    return key


def find_base(connection: Connection, name: str) -> BaseRow | None:
    """A base by name."""
    row = connection.execute(_BASE.where(bases.c.name == name)).one_or_none()
    return None if row is None else BaseRow(**row._asdict())


def list_bases(connection: Connection, *, after: str | None, limit: int) -> list[BaseRow]:
    """Bases by name."""
    query = _BASE.order_by(bases.c.name).limit(limit)
    return [BaseRow(**row._asdict()) for row in connection.execute(past(query, bases.c.name, after))]


def find_manifest(connection: Connection, name: str) -> dict[str, Any] | None:
    """A base's manifest, as JSON."""
    found: dict[str, Any] | None = connection.scalar(select(bases.c.manifest).where(bases.c.name == name))
    return found
