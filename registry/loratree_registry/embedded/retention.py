"""Retention at a node: a few hundred versions in each transaction, so that other writers go in between."""

from sqlalchemy import Engine

from loratree_registry.catalog import deleting
from loratree_registry.core.records import Retained
from loratree_registry.database.engine import freeing, reading


def retain(engine: Engine, path: str, *, keep: int, dry_run: bool) -> Retained:
    """Delete versions as `deleting.retain` says, or only list them; a dry run takes no lock. See Registry.retain."""
    if dry_run:
        with reading(engine) as connection:
            return deleting.surplus(connection, path, keep=keep)
    done = Retained(path=path, kept=0, deleted=[], bytes=0)
    while True:
        with freeing(engine) as connection:
            batch, more = deleting.retain(connection, path, keep=keep)
        done = Retained(
            path=path, kept=batch.kept, deleted=done.deleted + batch.deleted, bytes=done.bytes + batch.bytes
        )
        if not more:
            return done
