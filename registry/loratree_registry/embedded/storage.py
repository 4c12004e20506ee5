"""Open the database and the blob store, once for all who need both."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine

from loratree_registry.blobs.open import open_blobs
from loratree_registry.blobs.store import BlobStore
from loratree_registry.database.engine import open_engine, prepare, upgrade_database
from loratree_registry.errors import Invalid
from loratree_registry.settings import Settings


@dataclass(frozen=True, slots=True)
class Storage:
    """An engine whose schema is at this release's, and the blobs that its rows name."""

    engine: Engine
    blobs: BlobStore

    def close(self) -> None:
        """Close the connections of both."""
        self.engine.dispose()
        self.blobs.close()


@contextmanager
def open_storage(settings: Settings) -> Iterator[Storage]:
    """Opens what `settings` name and closes it in the end. Raises Invalid under LORATREE_URL, Unavailable."""
    if settings.url is not None:
        raise Invalid(
            "LORATREE_URL names a registry that is served, whose database and blobs this command cannot reach: "
            "unset it, and run this where LORATREE_DATABASE and LORATREE_BLOBS are that server's"
        )
    storage = open_prepared(settings)
    try:
        yield storage
    finally:
        storage.close()


def open_prepared(settings: Settings) -> Storage:
    """Make HOME, open the database and the blob store, and migrate SQLite. The caller closes it.

    Raises Unavailable, Invalid.
    """
    settings.make_home()
    storage = Storage(open_engine(settings.database), open_store(settings))
    try:
        prepare(storage.engine)
    except BaseException:
        storage.close()
        raise
    return storage


def open_store(settings: Settings) -> BlobStore:
    """Open the blob store that `settings` name; connects to nothing yet. Raises Invalid."""
    return open_blobs(settings.blobs, endpoint=settings.s3_endpoint, public_endpoint=settings.s3_public_endpoint)


def upgrade(settings: Settings) -> str:
    """Bring the database to the schema of this release and return the revision. Raises Unavailable."""
    settings.make_home()
    return upgrade_database(settings.database)
