"""Events: what happened in a tree, written down in the transaction in which it happened."""

from sqlalchemy import Connection

from loratree_registry import repository
from loratree_registry.nodes import find_node
from loratree_registry.paging import check_limit, number_after, page
from loratree_registry.rows import EventRow, rfc3339
from loratree_registry.schemas import Event, Page


def events(connection: Connection, path: str, *, after: str | None, limit: int) -> Page[Event]:
    """What happened at `path` and below it, newest first."""
    node = find_node(connection, path)
    rows = repository.list_events(connection, node.id, before=number_after(after), limit=check_limit(limit) + 1)
    return page(rows, limit, key=lambda row: str(row.id), records=lambda shown: [_record(row) for row in shown])


def _record(row: EventRow) -> Event:
    return Event(id=row.id, path=row.path, kind=row.kind, detail=row.detail, created_at=rfc3339(row.created_at))
