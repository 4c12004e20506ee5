"""Queries of blobs: bytes that are expected, stored and verified, or condemned.

The order keeps the database from ever being ahead of the store, whatever is killed and whoever collects meanwhile:
lease (expected) → the bytes are put and read back → stored → a version refers to them. Collecting condemns what nothing
refers to, and removes the bytes while it holds the row; a lease saves a condemned blob, so it is put and read again.
"""

from uuid import uuid4

from sqlalchemy import Connection, bindparam, case, select, update

from loratree_registry.core.times import now
from loratree_registry.database.queries.shared import insert_for
from loratree_registry.database.tables import blobs

_stored = blobs.c.sha256.in_(bindparam("digests", expanding=True)) & (blobs.c.state == "stored")
_SIZES = select(blobs.c.sha256, blobs.c.size).where(_stored)
_HOLD = update(blobs).where(_stored).returning(blobs.c.sha256, blobs.c.size)


def lease_blob(connection: Connection, sha256: str, size: int) -> str:
    """Says that bytes are on their way, so that they are not collected before the grace period is over.

    Returns the lease: the same for all who send the same bytes at once, another one once they were condemned.
    """
    new = {"state": "expected", "touched_at": now(), "lease": uuid4().hex}
    condemned = blobs.c.state == "condemned"
    kept = {name: case((condemned, new[name]), else_=blobs.c[name]) for name in ("state", "lease")}
    statement = insert_for(connection)(blobs).values(sha256=sha256, size=size, **new)
    statement = statement.on_conflict_do_update(
        index_elements=[blobs.c.sha256], set_=kept | {"touched_at": new["touched_at"]}
    )
    lease: str = connection.execute(statement.returning(blobs.c.lease)).scalar_one()
    return lease


def record_stored(connection: Connection, sha256: str, size: int, lease: str) -> bool:
    """Records leased bytes as stored and verified; False where the lease ran out and they may be collected.

    A lease that somebody else was given since is no proof: what was put under this one may have been removed between.
    """
    leased = (blobs.c.sha256 == sha256) & (blobs.c.state != "condemned") & (blobs.c.lease == lease)
    values = {"state": "stored", "size": size, "touched_at": now()}
    return connection.execute(update(blobs).where(leased).values(values)).rowcount == 1


def hold_blobs(connection: Connection, digests: list[str]) -> dict[str, int]:
    """The sizes of those bytes that are stored; they are not collected before this transaction and a grace are over."""
    return {row.sha256: row.size for row in connection.execute(_HOLD, {"digests": digests, "touched_at": now()})}


def blob_sizes(connection: Connection, digests: list[str]) -> dict[str, int]:
    """The sizes of those bytes that are stored."""
    return {row.sha256: row.size for row in connection.execute(_SIZES, {"digests": digests})}
