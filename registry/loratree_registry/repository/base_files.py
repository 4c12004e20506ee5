"""Queries of the files of bases' checkpoints, where their weights are stored."""

from sqlalchemy import Connection, insert, select

from loratree_registry.composition import FileDigest
from loratree_registry.models import base_files


def insert_base_files(connection: Connection, base_id: int, files: list[FileDigest]) -> None:
    """Inserts the files of a base; their bytes are stored."""
    rows = [{"base_id": base_id, "name": file.name, "size": file.size, "sha256": file.sha256} for file in files]
    connection.execute(insert(base_files), rows)


def files_of_base(connection: Connection, base_id: int) -> list[FileDigest]:
    """The files of a base by name; none where its weights are not stored."""
    query = select(base_files).where(base_files.c.base_id == base_id).order_by(base_files.c.name)
    return [FileDigest(row.name, row.size, row.sha256) for row in connection.execute(query)]
