"""Bytes that a collection removed while a reader was at work, told apart from bytes that the store has lost."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from loratree_registry.core.digests import FileDigest
from loratree_registry.database import queries
from loratree_registry.database.engine import reading
from loratree_registry.errors import Corrupt, Unavailable


@contextmanager
def telling_removed(engine: Engine, file: FileDigest) -> Iterator[None]:
    """Turn Corrupt inside the block into Unavailable if the database no longer records the file's bytes as stored.

    A reader finds a file in one transaction and opens it later. If the file's versions are deleted and a collection
    runs in between, nothing is lost: the reader must only look again.
    """
    try:
        yield
    except Corrupt as error:
        with reading(engine) as connection:
            known = queries.blobs.blob_sizes(connection, [file.sha256])
        if file.sha256 in known:
            raise
        raise removed(file) from error


def removed(file: FileDigest) -> Unavailable:
    """Return the error for bytes that were removed while they were being read."""
    name = file.sha256 if file.name in ("", file.sha256) else f"{file.name} ({file.sha256})"
    return Unavailable(
        f"the bytes of {name} were removed by a collection while they were read, because nothing refers to them any "
        "more: run the same command again"
    )
