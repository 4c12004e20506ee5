"""Queries of blobs, which are expected, stored and verified, or condemned; docs/decisions/0010 draws the states.

The database must never list bytes that the store lacks, even if a process is killed or a collector runs at the same
time. So an upload takes a lease (expected), writes the bytes, reads them back, and only then marks the blob stored; a
version may refer to a stored blob only. A collector condemns a blob that nothing refers to, and removes its bytes while
it holds the row's lock. A new lease saves a condemned blob, and the upload writes and reads the bytes again.

A lease is a name that a writer puts on the blob's row before it sends the bytes. It does not stop the collector, which
spares a row while `touched_at` is within the grace; taking a lease only renews `touched_at`. The lease protects against
bytes that arrive late: the first lease after a row was condemned gets a new name, and bytes that were sent under the
old name are not recorded, because the collector may have removed them.
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
    """Take a lease on a blob before its upload, restart its grace period, and return the lease.

    Uploads of the same bytes share one lease, until the blob is condemned: the next upload gets a new one. A stored row
    stays stored: versions may refer to it, and an upload that fails takes no bytes away.
    """
    new = {"state": "expected", "touched_at": now(), "lease": uuid4().hex}
    condemned = blobs.c.state == "condemned"
    renewed = {name: case((condemned, new[name]), else_=blobs.c[name]) for name in ("state", "lease")}
    statement = insert_for(connection)(blobs).values(sha256=sha256, size=size, **new)
    statement = statement.on_conflict_do_update(
        index_elements=[blobs.c.sha256], set_=renewed | {"touched_at": new["touched_at"]}
    )
    lease: str = connection.execute(statement.returning(blobs.c.lease)).scalar_one()
    return lease


def record_stored(connection: Connection, sha256: str, size: int, lease: str) -> bool:
    """Mark a leased blob as stored and verified. Return False if a collection ended the lease.

    A lease ends when its row is condemned: a collector may have removed the bytes, even if the row is stored again.
    """
    leased = (blobs.c.sha256 == sha256) & (blobs.c.state != "condemned") & (blobs.c.lease == lease)
    values = {"state": "stored", "size": size, "touched_at": now()}
    return connection.execute(update(blobs).where(leased).values(values)).rowcount == 1


def hold_blobs(connection: Connection, digests: list[str]) -> dict[str, int]:
    """Lock the stored blobs among `digests`, restart their grace period, and return their sizes by digest."""
    return {row.sha256: row.size for row in connection.execute(_HOLD, {"digests": digests, "touched_at": now()})}


def blob_sizes(connection: Connection, digests: list[str]) -> dict[str, int]:
    """Return the sizes of the stored blobs among `digests`, by digest."""
    return {row.sha256: row.size for row in connection.execute(_SIZES, {"digests": digests})}
