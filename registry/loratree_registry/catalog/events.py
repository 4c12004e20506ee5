"""Events: the changes in a tree, each recorded in the transaction that makes the change.

The kinds: base-added and base-stored at a base; node-created; version-published, version-imported, version-withdrawn,
version-reinstated, version-quarantined, quarantine-lifted and version-deleted at the node of the version; alias-set and
alias-deleted at the node of the alias. Clients must ignore kinds that they do not know.
"""

from sqlalchemy import Connection

from loratree_registry.catalog.nodes import find_node
from loratree_registry.catalog.paging import check_limit, number_after, page
from loratree_registry.core.records import Event, Page
from loratree_registry.core.times import rfc3339
from loratree_registry.database import queries
from loratree_registry.database.rows import EventRow


def events(connection: Connection, path: str, *, after: str | None, limit: int) -> Page[Event]:
    """Return a page of the events at `path` and below it, newest first."""
    node = find_node(connection, path)
    rows = queries.events.list_events(connection, node.id, before=number_after(after), limit=check_limit(limit) + 1)
    return page(rows, limit, key=lambda row: str(row.id), records=lambda shown: [_to_record(row) for row in shown])


def _to_record(row: EventRow) -> Event:
    return Event(id=row.id, path=row.path, kind=row.kind, detail=row.detail, created_at=rfc3339(row.created_at))
