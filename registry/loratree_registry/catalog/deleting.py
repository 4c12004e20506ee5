"""Deleting: the version goes, and a tombstone stays so that its number is never used again."""

from sqlalchemy import Connection

from loratree_registry.catalog.lineage import dependents
from loratree_registry.catalog.nodes import find_node
from loratree_registry.catalog.paging import check_limit, number_after, page
from loratree_registry.catalog.versions import check_unnamed, lock_version
from loratree_registry.core.paths import MAX_NUMBER
from loratree_registry.core.records import Page, Retained, Tombstone
from loratree_registry.core.text import check_reason
from loratree_registry.database import queries
from loratree_registry.database.rows import VersionRow
from loratree_registry.errors import Conflict, Invalid, listed

_SHOWN = 5


def delete(connection: Connection, ref: str, *, reason: str) -> Tombstone:
    """Delete a version. Its bytes are collected later, unless another version or a base uses them.

    Raises NotFound, Invalid, Gone if the version was deleted already, and Conflict while an alias names the version or
    another version is pinned to it.
    """
    check_reason(reason)
    row = lock_version(connection, ref)
    check_unnamed(connection, row, "delete it")
    _check_unpinned(connection, row)
    bury(connection, row.path, [(row.id, row.number)], reason)
    tombstone = queries.tombstones.find_tombstone(connection, row.node_id, row.number)
    assert tombstone is not None
    return tombstone.record()


def bury(connection: Connection, path: str, versions: list[tuple[int, int]], reason: str) -> None:
    """Delete versions of one node, each a key and a number. No alias or pin may name one of them."""
    queries.tombstones.bury_versions(connection, [key for key, _ in versions], reason)
    for _, number in versions:
        queries.events.insert_event(connection, path, "version-deleted", version=number, reason=reason)


def tombstones(connection: Connection, path: str, *, after: str | None, limit: int) -> Page[Tombstone]:
    """Return a page of the tombstones at `path`, newest first."""
    node, before = find_node(connection, path), number_after(after, digits=9)
    rows = queries.tombstones.list_tombstones(connection, node.id, before=before, limit=check_limit(limit) + 1)
    return page(rows, limit, key=lambda row: str(row.number), records=lambda shown: [row.record() for row in shown])


def _check_unpinned(connection: Connection, row: VersionRow) -> None:
    count = queries.versions.count_dependents(connection, row.id)
    if count == 0:
        return
    first = [f"{v.path}@{v.number}" for v in dependents(connection, row.ref, after=None, limit=_SHOWN).items]
    more = f"; and {count - len(first)} more" if count > len(first) else ""
    raise Conflict(
        f"{row.ref} cannot be deleted: {listed(first)}{more} were trained on it; delete those first, "
        f"or withdraw it by `loratree withdraw {row.ref} --reason TEXT`"
    )


_AT_ONCE = 500  # versions that one statement deletes


def retain(connection: Connection, path: str, *, keep: int, dry_run: bool) -> Retained:
    """Delete the versions at `path`, except the newest `keep`, the head, and each version that an alias or a pin names.

    Raises NotFound, Invalid.
    """
    if not 1 <= keep <= MAX_NUMBER:
        raise Invalid(f"retention keeps 1 to {MAX_NUMBER} versions of a node, got {keep}")
    node = find_node(connection, path)
    queries.nodes.lock_node(connection, node.id)
    surplus = queries.tombstones.expendable_versions(connection, node.id, keep=keep)
    if not dry_run:
        for start in range(0, len(surplus), _AT_ONCE):
            batch = [(key, number) for key, number, _ in surplus[start : start + _AT_ONCE]]
            bury(connection, node.path, batch, f"retention kept the newest {keep}")
    kept = queries.versions.count_versions(connection, node.id) - (len(surplus) if dry_run else 0)
    return Retained(
        path=node.path, kept=kept, deleted=[number for _, number, _ in surplus], bytes=sum(size for *_, size in surplus)
    )
