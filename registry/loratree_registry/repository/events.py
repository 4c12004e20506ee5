"""Queries of events."""

from typing import Any

from sqlalchemy import Connection, literal, select
from sqlalchemy import insert as insert_into

from loratree_registry.models import event_views, events, nodes
from loratree_registry.paths import ancestors_of
from loratree_registry.rows import EventRow

_EVENT = (
    select(events.c.id, nodes.c.path, events.c.kind, events.c.detail, events.c.created_at)
    .join_from(event_views, events, event_views.c.event_id == events.c.id)
    .join(nodes, events.c.node_id == nodes.c.id)
)


def insert_event(connection: Connection, path: str, kind: str, **detail: Any) -> None:
    """Writes down what happens at a node, in the transaction in which it happens, to be seen from all above it."""
    at_node = select(nodes.c.id).where(nodes.c.path == path).scalar_subquery()
    written = insert_into(events).values(node_id=at_node, kind=kind, detail=detail).returning(events.c.id)
    event_id = connection.execute(written).scalar_one()
    seen_from = select(nodes.c.id, literal(event_id)).where(nodes.c.path.in_([*ancestors_of(path), path]))
    connection.execute(insert_into(event_views).from_select(["node_id", "event_id"], seen_from))


def list_events(connection: Connection, node_id: int, *, before: int | None, limit: int) -> list[EventRow]:
    """What happened at a node and below it, newest first."""
    query = _EVENT.where(event_views.c.node_id == node_id).order_by(event_views.c.event_id.desc()).limit(limit)
    if before is not None:
        query = query.where(event_views.c.event_id < before)
    return [EventRow(**row._asdict()) for row in connection.execute(query)]
