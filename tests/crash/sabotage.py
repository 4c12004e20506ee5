"""Ways to break `loratree` in a child, each of which the matrix must notice."""

from typing import Any, BinaryIO

from sqlalchemy import Connection

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.catalog import publishing
from loratree_registry.database import queries
from loratree_registry.database.engine import writing
from loratree_registry.embedded.registry import EmbeddedRegistry


def row_before_bytes() -> None:
    """Says that bytes are stored before they are."""
    put = LocalBlobStore.put

    def upload(registry: EmbeddedRegistry, stream: BinaryIO, *, sha256: str, size: int) -> None:
        with writing(registry._engine) as connection:
            lease = queries.blobs.lease_blob(connection, sha256, size)
            queries.blobs.record_stored(connection, sha256, size, lease)
        put(registry._blobs, sha256, size, stream)

    EmbeddedRegistry.upload = upload  # type: ignore[method-assign]


def two_transactions() -> None:
    """Commits the nodes of a version before the version."""
    ensure = publishing.ensure_trail

    def ensure_and_commit(connection: Connection, *given: Any, **named: Any) -> Any:
        trail = ensure(connection, *given, **named)
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        return trail

    publishing.ensure_trail = ensure_and_commit  # type: ignore[assignment]


def hushed_failure() -> None:
    """Calls it a success where the database is gone."""
    from loratree_cli import main

    main.fail = lambda *_: None  # type: ignore[assignment]
