"""Deleting: a version goes, a tombstone stays."""

from sqlalchemy import Connection

from loratree_registry import repository
from loratree_registry.errors import Conflict, listed
from loratree_registry.lineage import dependents
from loratree_registry.nodes import find_node
from loratree_registry.paging import check_limit, number_after, page
from loratree_registry.rows import VersionRow
from loratree_registry.schemas import Page, Tombstone
from loratree_registry.text import check_reason
from loratree_registry.versions import check_unnamed, lock_version

_SHOWN = 5


def delete(connection: Connection, ref: str, *, reason: str) -> Tombstone:
    """Deletes a version; its number is never used again, and its bytes are collected once nothing else needs them.

    Raises NotFound, Gone where it was deleted already, Invalid, and Conflict while an alias names it or a version is
    pinned to it.
    """
    check_reason(reason)
    row = lock_version(connection, ref)
    check_unnamed(connection, row, "delete it")
    _check_unpinned(connection, row)
    bury(connection, row.path, [(row.id, row.number)], reason)
    left = repository.find_tombstone(connection, row.node_id, row.number)
    assert left is not None
    return left.record()


def bury(connection: Connection, path: str, found: list[tuple[int, int]], reason: str) -> None:
    """Deletes versions of one node, each a key and a number, that nothing refers to."""
    repository.bury_versions(connection, [key for key, _ in found], reason)
    for _, number in found:
        repository.insert_event(connection, path, "version-deleted", version=number, reason=reason)


def tombstones(connection: Connection, path: str, *, after: str | None, limit: int) -> Page[Tombstone]:
    """What is left of the versions that were deleted at `path`, newest first."""
    node, before = find_node(connection, path), number_after(after, digits=9)
    rows = repository.list_tombstones(connection, node.id, before=before, limit=check_limit(limit) + 1)
    return page(rows, limit, key=lambda row: str(row.number), records=lambda shown: [row.record() for row in shown])


def _check_unpinned(connection: Connection, row: VersionRow) -> None:
    count = repository.count_dependents(connection, row.id)
    if count == 0:
        return
    first = [f"{v.path}@{v.number}" for v in dependents(connection, row.ref, after=None, limit=_SHOWN).items]
    more = f"; and {count - len(first)} more" if count > len(first) else ""
    raise Conflict(
        f"{row.ref} cannot be deleted: {listed(first)}{more} were trained on it; delete those first, "
        f"or withdraw it by `loratree withdraw {row.ref} --reason TEXT`"
    )
