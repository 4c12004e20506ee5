"""The database and the blob store, opened together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from loratree_registry.blobs.open import open_blobs
from loratree_registry.blobs.store import BlobStore
from loratree_registry.database.empty import open_empty
from loratree_registry.database.engine import open_engine, prepare, upgrade_database
from loratree_registry.errors import Invalid, NotFound
from loratree_registry.settings import Settings


@dataclass(frozen=True, slots=True)
class Storage:
    """An engine at this release's schema, and the blobs that the database's rows name."""

    engine: Engine
    blobs: BlobStore

    def close(self) -> None:
        """Close the connections of both."""
        self.engine.dispose()
        self.blobs.close()


@contextmanager
def open_storage(settings: Settings, *, begun: bool = False) -> Iterator[Storage]:
    """Open the storage that `settings` name, for one block. Raises Invalid if LORATREE_URL is set, Unavailable.

    With `begun`, raises NotFound if HOME has no database yet: what looks after a registry must not find a new one
    sound because LORATREE_HOME names the wrong folder.
    """
    if settings.url is not None:
        raise Invalid(
            "LORATREE_URL names a registry that is served, and this command cannot reach its database and blobs: "
            "unset it, and run the command where the server runs, with its LORATREE_HOME, or its LORATREE_DATABASE and "
            "LORATREE_BLOBS"
        )
    if begun and _is_unbegun(settings):
        raise NotFound(f"there is no registry in {settings.home} yet: set LORATREE_HOME or LORATREE_DATABASE to yours")
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


def open_if_begun(settings: Settings) -> Storage:
    """Open the storage as `open_prepared` does; if HOME has no database yet, an empty one in memory stands for it.

    So a command that needs a base leaves no file behind, as in a folder that LORATREE_HOME names by mistake.
    """
    return Storage(open_empty(), open_store(settings)) if _is_unbegun(settings) else open_prepared(settings)


def _is_unbegun(settings: Settings) -> bool:
    """Return whether the database is the default one, and is not there; false also if that cannot be known."""
    if not isinstance(settings.database, Path):
        return False
    try:
        settings.database.lstat()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def open_store(settings: Settings) -> BlobStore:
    """Open the blob store that `settings` name, without a connection yet. Raises Invalid."""
    return open_blobs(settings.blobs, endpoint=settings.s3_endpoint, public_endpoint=settings.s3_public_endpoint)


def upgrade(settings: Settings) -> str:
    """Bring the database to the schema of this release and return the revision. Raises Unavailable."""
    settings.make_home()
    return upgrade_database(settings.database)
