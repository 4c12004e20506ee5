"""Lineage: the versions that a version was trained on, and the versions that were trained on it."""

from sqlalchemy import Connection

from loratree_registry.catalog.nodes import find_node
from loratree_registry.catalog.paging import check_limit, number_after
from loratree_registry.catalog.versions import choose, find_version, no_version, page_of, records
from loratree_registry.core.paths import Ref, parse_ref
from loratree_registry.core.records import Edge, Lineage, Page, Version
from loratree_registry.database import queries
from loratree_registry.database.rows import NodeRow, VersionRow


def lineage(connection: Connection, ref: str) -> Lineage:
    """Return the edges from the version that `ref` names up to its base; a base has no edges. Raises NotFound."""
    parsed, node, chain = _find_chain(connection, ref)
    edges = [_to_edge(row) for row in reversed(chain)]
    return Lineage(ref=str(parsed), base=node.base_ref(), edges=edges, stale=any(edge.stale for edge in edges))


def ancestry(connection: Connection, ref: str) -> list[Version]:
    """Return the pinned chain of the version that `ref` names, root to leaf: three queries at any depth."""
    return records(connection, _find_chain(connection, ref, configs=True)[2])


def dependents(connection: Connection, ref: str, *, after: str | None, limit: int) -> Page[Version]:
    """Return a page of the versions trained directly on `ref`, a version or a base, in the order of publishing."""
    parsed = parse_ref(ref)
    node = find_node(connection, parsed.path)
    pin_id = None if _is_base(node, parsed) else find_version(connection, ref).id
    found = queries.versions.list_dependents(
        connection, pin_id, node.base_id, after=number_after(after), limit=check_limit(limit) + 1
    )
    return page_of(connection, found, limit, key=lambda row: str(row.id))


def _find_chain(connection: Connection, ref: str, *, configs: bool = False) -> tuple[Ref, NodeRow, list[VersionRow]]:
    parsed = parse_ref(ref)
    node = find_node(connection, parsed.path)
    selector = choose(connection, node, parsed.selector)
    chain = queries.versions.pinned_chain(connection, node.id, selector, configs=configs)
    if not chain and not _is_base(node, parsed):
        raise no_version(connection, node, selector)
    return parsed, node, chain


def _is_base(node: NodeRow, ref: Ref) -> bool:
    """Return whether `ref` names a base. A base is not a version, but versions can be trained on it."""
    return node.level == "base" and ref.selector is None


def _to_edge(row: VersionRow) -> Edge:
    return Edge(
        child=row.ref,
        child_digest=row.digest,
        parent=row.pin_ref,
        parent_digest=row.pin_digest,
        found=row.found,
        stale=row.stale,
        withdrawn=row.withdrawn(),
        quarantined=row.quarantined(),
    )
