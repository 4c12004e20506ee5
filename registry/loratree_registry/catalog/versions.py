"""Versions: the immutable adapters published at a node."""

from sqlalchemy import Connection

from loratree_registry.catalog.nodes import find_node
from loratree_registry.catalog.paging import check_limit, number_after, page
from loratree_registry.core.paths import is_digest, parent_of, parse_ref, versionless
from loratree_registry.core.records import Page, Version
from loratree_registry.core.times import rfc3339
from loratree_registry.database import queries
from loratree_registry.database.queries.versions import Selector
from loratree_registry.database.rows import NodeRow, VersionRow
from loratree_registry.errors import Conflict, Gone, Invalid, NotFound, listed


def find_version(connection: Connection, ref: str) -> VersionRow:
    """The version's row that `ref` names. Raises NotFound, naming what there is."""
    parsed = parse_ref(ref)
    node = find_node(connection, parsed.path)
    found = queries.versions.find_version(connection, node.id, parsed.selector)
    if found is None:
        raise no_version(connection, node, parsed.selector)
    return found


def version(connection: Connection, ref: str) -> Version:
    """The version that `ref` names. Raises NotFound."""
    return records(connection, [find_version(connection, ref)])[0]


def versions(connection: Connection, path: str, *, content: str | None, after: str | None, limit: int) -> Page[Version]:
    """The versions at `path`, newest first; `content` keeps those of one content digest."""
    if content is not None and not is_digest(content):
        raise Invalid(f"content is {content[:80]!r}: expected sha256: and 64 hexadecimal digits")
    node, before = find_node(connection, path), number_after(after, digits=9)
    rows = queries.versions.list_versions(
        connection, node.id, content=content, before=before, limit=check_limit(limit) + 1
    )
    return page(rows, limit, key=lambda row: str(row.number), records=lambda shown: records(connection, shown))


def records(connection: Connection, rows: list[VersionRow]) -> list[Version]:
    """The versions as they are given out: one query for all their files."""
    files = queries.versions.files_of(connection, [row.id for row in rows])
    return [row.record(files[row.id]) for row in rows]


def lock_version(connection: Connection, ref: str) -> VersionRow:
    """One version by its number or digest, and its node held until the transaction ends. Raises NotFound, Invalid.

    A head or an alias may stand for another version by the time that the same request is sent again.
    """
    parsed = parse_ref(ref)
    if parent_of(parsed.path) is None:
        raise Invalid(versionless(parsed.path))
    if not isinstance(parsed.selector, int) and not is_digest(parsed.selector):
        raise Invalid(f"{ref} may name another version at any time: give its number or digest, as {parsed.path}@1 does")
    node = find_node(connection, parsed.path)
    queries.nodes.lock_node(connection, node.id)
    found = queries.versions.find_version(connection, node.id, parsed.selector)
    if found is None:
        raise no_version(connection, node, parsed.selector)
    return found


def check_unnamed(connection: Connection, row: VersionRow, purpose: str) -> None:
    """Raises Conflict while an alias names a version."""
    names = queries.aliases.aliases_of(connection, row.id)
    if names:
        raise Conflict(
            f"{row.ref} is named by the alias {listed(names)}: move it by `loratree alias set {row.path} {names[0]} "
            f"VERSION`, or remove it by `loratree alias rm {row.path} {names[0]}`, then {purpose}"
        )


def no_version(connection: Connection, node: NodeRow, selector: Selector) -> NotFound:
    """The sentence for a selector that nothing at the node answers to, with what there is."""
    if node.level == "base":
        return NotFound(versionless(node.path))
    left = None if selector is None else queries.tombstones.find_tombstone(connection, node.id, selector)
    if left is not None:
        return Gone(
            f"{left.path}@{left.number} was deleted on {rfc3339(left.deleted_at)[:10]} ({left.reason}): "
            f"name another version, see `loratree show {left.path}`"
        )
    newest = queries.versions.list_versions(connection, node.id, content=None, before=None, limit=1)
    if node.head is None and newest:
        return NotFound(
            f"{node.path} has no version that is not withdrawn: name one by its number, such as {newest[0].ref}"
        )
    if not newest:
        return NotFound(f"{node.path} is a grouping without a version: publish one there, or name another node")
    aliases = [alias.name for alias in queries.aliases.list_aliases(connection, [node.id])]
    named = f", and the aliases {listed(aliases)}" if aliases else " and no alias"
    return NotFound(f"{node.path} has no version {selector}: it has 1 to {newest[0].number}{named}")
