"""Queries of blobs: bytes that are expected, stored and verified, or condemned.

The order keeps the database from ever being ahead of the store, whatever is killed and whoever collects meanwhile:
lease (expected) → the bytes are put and read back → stored → a version refers to them. Collecting condemns what nothing
refers to, and removes the bytes while it holds the row; a lease saves a condemned blob, so it is put and read again.
"""

from sqlalchemy import Connection, bindparam, case, select, update

from loratree_registry.models import blobs, now
from loratree_registry.repository.shared import insert_for

_stored = blobs.c.sha256.in_(bindparam("digests", expanding=True)) & (blobs.c.state == "stored")
_SIZES = select(blobs.c.sha256, blobs.c.size).where(_stored)
_HOLD = update(blobs).where(_stored).returning(blobs.c.sha256, blobs.c.size)


def lease_blob(connection: Connection, sha256: str, size: int) -> None:
    """Says that bytes are on their way, so that they are not collected before the grace period is over."""
    statement = insert_for(connection)(blobs).values(sha256=sha256, size=size, state="expected", touched_at=now())
    kept = case((blobs.c.state == "condemned", "expected"), else_=blobs.c.state)
    connection.execute(
        statement.on_conflict_do_update(index_elements=[blobs.c.sha256], set_={"state": kept, "touched_at": now()})
    )


def record_stored(connection: Connection, sha256: str, size: int) -> bool:
    """Records leased bytes as stored and verified; False where the lease ran out and they may be collected."""
    leased = (blobs.c.sha256 == sha256) & (blobs.c.state != "condemned")
    values = {"state": "stored", "size": size, "touched_at": now()}
    return connection.execute(update(blobs).where(leased).values(values)).rowcount == 1


def hold_blobs(connection: Connection, digests: list[str]) -> dict[str, int]:
    """The sizes of those bytes that are stored; they are not collected before this transaction and a grace are over."""
    return {row.sha256: row.size for row in connection.execute(_HOLD, {"digests": digests, "touched_at": now()})}


def blob_sizes(connection: Connection, digests: list[str]) -> dict[str, int]:
    """The sizes of those bytes that are stored."""
    return {row.sha256: row.size for row in connection.execute(_SIZES, {"digests": digests})}
