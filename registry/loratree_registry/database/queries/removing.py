"""Queries that remove nodes and bases, with what was recorded about them."""

from sqlalchemy import ColumnElement, Connection, delete, exists, select, text, update

from loratree_registry.core.times import now
from loratree_registry.database.tables import (
    base_files,
    bases,
    blobs,
    event_views,
    events,
    nodes,
    tombstones,
    versions,
)


def wait_for_writers(connection: Connection) -> None:
    """Wait for those who publish, and let nobody publish until the transaction ends; readers go on.

    Locks of single rows would not do: whoever publishes creates nodes, and waits for one here while this waits for
    another there. On SQLite, a writer has locked the whole database already.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("LOCK TABLE nodes IN EXCLUSIVE MODE"))


def has_versions(connection: Connection, base_id: int) -> bool:
    """Return whether a base's tree has a version. The first one of any chain is pinned to the base itself."""
    pinned_to_base = versions.c.pin_id.is_(None)
    return bool(connection.scalar(select(exists().where(versions.c.base_id == base_id, pinned_to_base))))


def count_quarantined(connection: Connection, base_id: int) -> int:
    """Count the deleted versions of a base's tree that were quarantined."""
    query = select(tombstones.c.number).join_from(tombstones, nodes).where(nodes.c.base_id == base_id)
    return len(connection.execute(query.where(tombstones.c.quarantined_reason.is_not(None))).all())


def remove_node(connection: Connection, node_id: int) -> None:
    """Remove a node that has no child, version or tombstone, and its events."""
    _remove_nodes(connection, nodes.c.id == node_id)


def remove_base(connection: Connection, base_id: int) -> None:
    """Remove a base without versions, all its nodes, and the list of its files, whose grace period starts."""
    stored = select(base_files.c.sha256).where(base_files.c.base_id == base_id)
    in_order = select(blobs.c.sha256).where(blobs.c.sha256.in_(stored)).order_by(blobs.c.sha256)
    connection.execute(in_order.with_for_update(key_share=True)).all()  # as a deletion of versions locks them
    connection.execute(update(blobs).where(blobs.c.sha256.in_(stored)).values(touched_at=now()))
    connection.execute(delete(base_files).where(base_files.c.base_id == base_id))
    _remove_nodes(connection, nodes.c.base_id == base_id)
    connection.execute(delete(bases).where(bases.c.id == base_id))


def _remove_nodes(connection: Connection, chosen: ColumnElement[bool]) -> None:
    gone = select(nodes.c.id).where(chosen)
    told = select(events.c.id).where(events.c.node_id.in_(gone))
    connection.execute(delete(event_views).where(event_views.c.event_id.in_(told)))
    connection.execute(delete(event_views).where(event_views.c.node_id.in_(gone)))
    connection.execute(delete(events).where(events.c.node_id.in_(gone)))
    connection.execute(delete(tombstones).where(tombstones.c.node_id.in_(gone)))
    connection.execute(delete(nodes).where(chosen))
