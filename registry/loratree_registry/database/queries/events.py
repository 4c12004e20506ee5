"""Queries of events."""

from typing import Any

from sqlalchemy import Connection, Integer, bindparam, select
from sqlalchemy import insert as insert_into

from loratree_registry.core.paths import ancestors_of
from loratree_registry.database.rows import EventRow
from loratree_registry.database.tables import event_views, events, nodes

# Select the page's ids first: otherwise PostgreSQL reads a later page from the newest event on, 5,000 rows for 3.
_page = (
    select(event_views.c.event_id)
    .where(event_views.c.node_id == bindparam("node_id"), event_views.c.event_id < bindparam("before"))
    .order_by(event_views.c.event_id.desc())
    .limit(bindparam("limit", type_=Integer))
    .subquery("page")
)
_PAGE = (
    select(events.c.id, nodes.c.path, events.c.kind, events.c.detail, events.c.created_at)
    .join_from(_page, events, _page.c.event_id == events.c.id)
    .join(nodes, events.c.node_id == nodes.c.id)
    .order_by(events.c.id.desc())
)
_NEWEST = 2**63 - 1

_at_node = select(nodes.c.id).where(nodes.c.path == bindparam("path")).scalar_subquery()
_INSERT = insert_into(events).values(node_id=_at_node).returning(events.c.id)
_seen_from = select(nodes.c.id, bindparam("event_id", type_=events.c.id.type)).where(
    nodes.c.path.in_(bindparam("paths", expanding=True))
)
_INSERT_VIEWS = insert_into(event_views).from_select(["node_id", "event_id"], _seen_from)


def insert_event(connection: Connection, path: str, kind: str, **detail: Any) -> None:
    """Record an event at a node, in the transaction of the change itself; every node above shows the event too."""
    event_id = connection.scalar(_INSERT, {"path": path, "kind": kind, "detail": detail})
    connection.execute(_INSERT_VIEWS, {"paths": [*ancestors_of(path), path], "event_id": event_id})


def list_events(connection: Connection, node_id: int, *, before: int | None, limit: int) -> list[EventRow]:
    """Return the events at a node and below it, newest first."""
    parameters = {"node_id": node_id, "before": _NEWEST if before is None else before, "limit": limit}
    return [EventRow(**row._asdict()) for row in connection.execute(_PAGE, parameters)]
