"""The database and the blob store themselves, for commands that work where both are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine

from loratree_registry import database
from loratree_registry.blobs.open import open_blobs
from loratree_registry.blobs.store import BlobStore
from loratree_registry.errors import Invalid
from loratree_registry.settings import Settings


@dataclass(frozen=True, slots=True)
class Storage:
    """An engine whose schema is at this release's, and the blobs that its rows name."""

    engine: Engine
    blobs: BlobStore


@contextmanager
def open_storage(settings: Settings) -> Iterator[Storage]:
    """Opens what `settings` name and closes it in the end. Raises Invalid under LORATREE_URL, Unavailable."""
    if settings.url is not None:
        raise Invalid(
            "LORATREE_URL names a registry that is served, whose database and blobs this command cannot reach: "
            "unset it, and run this where LORATREE_DATABASE and LORATREE_BLOBS are that server's"
        )
    settings.make_home()
    blobs = open_blobs(settings.blobs, endpoint=settings.s3_endpoint, public_endpoint=settings.s3_public_endpoint)
    engine = database.open_engine(settings.database)
    try:
        database.prepare(engine)
        yield Storage(engine, blobs)
    finally:
        engine.dispose()
        blobs.close()
