"""Lineage: what a version was trained on, and what was trained on it."""

from sqlalchemy import Connection

from loratree_registry.catalog.nodes import find_node
from loratree_registry.catalog.paging import check_limit, number_after, page
from loratree_registry.catalog.versions import find_version, no_version, records
from loratree_registry.core.paths import Ref, parse_ref
from loratree_registry.core.records import Edge, Lineage, Page, Version
from loratree_registry.database import queries
from loratree_registry.database.rows import NodeRow, VersionRow


def lineage(connection: Connection, ref: str) -> Lineage:
    """The edges from the version that `ref` names up to its base; a base has none. Raises NotFound."""
    parsed, node, chain = _pinned(connection, ref)
    edges = [_edge(row) for row in reversed(chain)]
    return Lineage(ref=str(parsed), base=node.base_ref(), edges=edges, stale=any(edge.stale for edge in edges))


def ancestry(connection: Connection, ref: str) -> list[Version]:
    """The version that `ref` names, last, and what it was trained on before it: three queries whatever the depth."""
    return records(connection, _pinned(connection, ref)[2])


def dependents(connection: Connection, ref: str, *, after: str | None, limit: int) -> Page[Version]:
    """The versions trained directly on the one that `ref` names, or on the base, in the order of publishing."""
    parsed = parse_ref(ref)
    node = find_node(connection, parsed.path)
    pin_id = None if _is_base(node, parsed) else find_version(connection, ref).id
    rows = queries.versions.list_dependents(
        connection, pin_id, node.base_id, after=number_after(after), limit=check_limit(limit) + 1
    )
    return page(rows, limit, key=lambda row: str(row.id), records=lambda shown: records(connection, shown))


def _pinned(connection: Connection, ref: str) -> tuple[Ref, NodeRow, list[VersionRow]]:
    parsed = parse_ref(ref)
    node = find_node(connection, parsed.path)
    chain = queries.versions.pinned_chain(connection, node.id, parsed.selector)
    if not chain and not _is_base(node, parsed):
        raise no_version(connection, node, parsed.selector)
    return parsed, node, chain


def _is_base(node: NodeRow, ref: Ref) -> bool:
    """Whether `ref` names a base itself, which is no version but what versions may be trained on."""
    return node.level == "base" and ref.selector is None


def _edge(row: VersionRow) -> Edge:
    return Edge(
        child=row.ref,
        child_digest=row.digest,
        parent=row.pin_ref,
        parent_digest=row.pin_digest,
        found=row.pin_found,
        stale=row.stale,
        withdrawn=row.withdrawn(),
        quarantined=row.quarantined(),
    )
