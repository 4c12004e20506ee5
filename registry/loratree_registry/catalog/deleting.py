"""Deleting: the version goes, and a tombstone stays so that its number is never used again."""

from collections import defaultdict

from sqlalchemy import Connection

from loratree_registry.catalog.lineage import dependents
from loratree_registry.catalog.nodes import find_node
from loratree_registry.catalog.paging import check_limit, number_after, page
from loratree_registry.catalog.versions import check_unnamed, lock_version
from loratree_registry.core.paths import MAX_NUMBER, parse_path
from loratree_registry.core.records import Page, Retained, Tombstone
from loratree_registry.core.text import check_reason
from loratree_registry.database import queries
from loratree_registry.database.rows import NodeRow, VersionRow
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
    were, those = ("was", "that") if count == 1 else ("were", "those")
    raise Conflict(
        f"{row.ref} cannot be deleted: {listed(first)}{more} {were} trained on it; delete {those} first, "
        f"or withdraw it by `loratree withdraw {row.ref} --reason TEXT`"
    )


_NUMBERS = 500_000  # of versions on a page, 5 MB
_AT_ONCE = 500  # versions that one transaction deletes: 0.2 s on SQLite


def surplus(connection: Connection, path: str, *, keep: int) -> Retained:
    """Return what retention at `path` would delete; this only reads. Raises NotFound, Invalid."""
    node = _find_retained(connection, path, keep)
    rows = queries.tombstones.expendable_versions(connection, node.id, keep=keep)
    return _to_retained(node.path, queries.versions.count_versions(connection, node.id) - len(rows), rows)


def retain(connection: Connection, path: str, *, keep: int) -> tuple[Retained, bool]:
    """Delete the oldest versions at `path`, except the newest `keep`, the head, and those that an alias or a pin names.

    One call deletes at most _AT_ONCE versions; the second value says whether more are left. Raises NotFound, Invalid.
    """
    node = _find_retained(connection, path, keep)
    queries.nodes.lock_node(connection, node.id)
    rows = queries.tombstones.expendable_versions(connection, node.id, keep=keep, limit=_AT_ONCE + 1)
    more, rows = len(rows) > _AT_ONCE, rows[:_AT_ONCE]
    if rows:
        bury(connection, node.path, [(key, number) for key, number, _ in rows], f"retention kept the newest {keep}")
    return _to_retained(node.path, queries.versions.count_versions(connection, node.id), rows), more


def crowded(connection: Connection, path: str, *, keep: int, after: str | None, limit: int) -> Page[Retained]:
    """Return a page of the nodes at `path` and below with more than `keep` versions, and what `retain` would delete.

    This only reads: three queries for a page, however many nodes it has. Raises NotFound, Invalid.
    """
    _find_retained(connection, path, keep)
    after = None if after is None else parse_path(after)
    rows = queries.tombstones.crowded_nodes(connection, path, keep=keep, after=after, limit=check_limit(limit) + 1)
    count = len(rows[:limit])
    while len(found := _expendable(connection, rows[:count], keep)) > _NUMBERS and count > 1:
        count //= 2
    surplus: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for row in found:
        surplus[row[0]].append(row)
    return page(
        rows,
        max(1, count),
        key=lambda row: row[1],
        records=lambda shown: [_to_retained(name, held - len(surplus[key]), surplus[key]) for key, name, held in shown],
    )


def _expendable(connection: Connection, rows: list[tuple[int, str, int]], keep: int) -> list[tuple[int, int, int]]:
    most = _NUMBERS + 1 if len(rows) > 1 else MAX_NUMBER
    return queries.tombstones.expendable_at(connection, [row[0] for row in rows], keep=keep, limit=most)


def _find_retained(connection: Connection, path: str, keep: int) -> NodeRow:
    if not 1 <= keep <= MAX_NUMBER:
        raise Invalid(f"retention keeps 1 to {MAX_NUMBER} versions of a node, got {keep}")
    return find_node(connection, path)


def _to_retained(path: str, kept: int, rows: list[tuple[int, int, int]]) -> Retained:
    return Retained(
        path=path, kept=kept, deleted=[number for _, number, _ in rows], bytes=sum(size for *_, size in rows)
    )
