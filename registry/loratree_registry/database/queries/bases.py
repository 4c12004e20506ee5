"""Queries of bases."""

from typing import Any

from sqlalchemy import Connection, Text, cast, exists, insert, select, update

from loratree_registry.core.digests import FileDigest
from loratree_registry.database.json_text import JsonText
from loratree_registry.database.queries.shared import insert_new, past
from loratree_registry.database.rows import BaseRow
from loratree_registry.database.tables import base_files, bases

_STORED = exists().where(base_files.c.base_id == bases.c.id).label("stored")

_BASE = select(*(column for column in bases.c if column is not bases.c.manifest), _STORED)


def insert_base(connection: Connection, **values: Any) -> int | None:
    """Insert a base and return its key, or None if its name is taken."""
    key: int | None = insert_new(connection, bases, values)
    return key


def find_base(connection: Connection, name: str) -> BaseRow | None:
    """Return a base by name, or None."""
    row = connection.execute(_BASE.where(bases.c.name == name)).one_or_none()
    return None if row is None else BaseRow(**row._asdict())


def list_bases(connection: Connection, *, after: str | None, limit: int) -> list[BaseRow]:
    """Return the bases, by name."""
    query = _BASE.order_by(bases.c.name).limit(limit)
    return [BaseRow(**row._asdict()) for row in connection.execute(past(query, bases.c.name, after))]


def find_manifest(connection: Connection, name: str) -> dict[str, Any] | None:
    """Return a base's manifest as JSON, or None if there is no such base."""
    manifest: dict[str, Any] | None = connection.scalar(select(bases.c.manifest).where(bases.c.name == name))
    return manifest


def find_manifest_text(connection: Connection, name: str) -> str | None:
    """Return a base's manifest as it is stored, or None if there is no such base."""
    text: str | None = connection.scalar(select(cast(bases.c.manifest, Text)).where(bases.c.name == name))
    return text


def update_manifest(connection: Connection, base_id: int, manifest: JsonText) -> None:
    """Replace the manifest of a base by one with the same tensors."""
    connection.execute(update(bases).where(bases.c.id == base_id).values(manifest=manifest))


def update_source(connection: Connection, base_id: int, source: str | None) -> None:
    """Replace the source of a base."""
    connection.execute(update(bases).where(bases.c.id == base_id).values(source=source))


def insert_base_files(connection: Connection, base_id: int, files: list[FileDigest]) -> None:
    """Insert the files of a base; their blobs must be stored already."""
    rows = [{"base_id": base_id, "name": file.name, "size": file.size, "sha256": file.sha256} for file in files]
    connection.execute(insert(base_files), rows)


def files_of_base(connection: Connection, base_id: int) -> list[FileDigest]:
    """Return the files of a base, by name; the list is empty if its weights are not stored."""
    query = select(base_files).where(base_files.c.base_id == base_id).order_by(base_files.c.name)
    return [FileDigest(row.name, row.size, row.sha256) for row in connection.execute(query)]
