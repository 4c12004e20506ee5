"""Versions: the immutable adapters published at a node."""

import re
from collections.abc import Callable, Iterator
from typing import Final

from sqlalchemy import Connection

from loratree_registry.catalog.nodes import find_node
from loratree_registry.catalog.paging import MAX_BYTES, check_limit, number_after, page
from loratree_registry.core.paths import HEAD, NUMBER, digest_start, is_digest, parent_of, parse_ref, versionless
from loratree_registry.core.records import Page, Version
from loratree_registry.core.text import nearest
from loratree_registry.core.times import rfc3339
from loratree_registry.database import queries
from loratree_registry.database.queries.versions import MeasuredVersion, Selector
from loratree_registry.database.rows import NodeRow, VersionRow
from loratree_registry.errors import Conflict, Gone, Invalid, NotFound, listed

_NUMBERED: Final = re.compile(rf"(?:v|ver|version)[._-]?({NUMBER})")
_HEADS: Final = ("head", "last", "newest", "current", "main", "master")
_SHOWN: Final = 5  # versions whose digests begin alike
_MORE_DIGITS: Final = 8  # of each of them, beyond those that were given
_FIELDS: Final = 1024  # bytes of digests, times and names in the JSON of a version


def find_version(connection: Connection, ref: str) -> VersionRow:
    """Return the row of the version that `ref` names. Raises NotFound, with the selectors that would work."""
    parsed = parse_ref(ref)
    node = find_node(connection, parsed.path)
    selector = choose(connection, node, parsed.selector)
    row = queries.versions.find_version(connection, node.id, selector)
    if row is None:
        raise no_version(connection, node, selector)
    return row


def choose(connection: Connection, node: NodeRow, selector: Selector) -> Selector:
    """Return the digest that a selector begins, if it is the start of one at the node; else the selector as it is.

    An alias of the same letters comes first. Raises Invalid, with the versions, if several digests begin like this.
    """
    start = digest_start(selector) if isinstance(selector, str) else None
    if start is None or is_digest(selector) or queries.aliases.has_alias(connection, node.id, str(selector)):
        return selector
    found = queries.versions.versions_from_digest(connection, node.id, start, limit=_SHOWN + 1)
    if len(found) > 1:
        digits = len(start) + _MORE_DIGITS
        named = [f"{node.path}@{number} ({digest[:digits]})" for number, digest in found[:_SHOWN]]
        more = " and more" if len(found) > _SHOWN else ""
        raise Invalid(
            f"{node.path}@{selector} is the start of several digests: {listed(named)}{more}; give more digits"
        )
    return found[0][1] if found else start


def version(connection: Connection, ref: str) -> Version:
    """Return the version that `ref` names. Raises NotFound."""
    return records(connection, [find_version(connection, ref)])[0]


def versions(connection: Connection, path: str, *, content: str | None, after: str | None, limit: int) -> Page[Version]:
    """Return a page of the versions at `path`, newest first; `content` selects versions by their content digest."""
    if content is not None and not is_digest(content):
        raise Invalid(f"content is {content[:80]!r}: expected sha256: and 64 hexadecimal digits")
    node, before = find_node(connection, path), number_after(after, digits=9)
    found = queries.versions.list_versions(
        connection, node.id, content=content, before=before, limit=check_limit(limit) + 1
    )
    return page_of(connection, found, limit, key=lambda row: str(row.number))


def holders(connection: Connection, sha256: str, *, quarantined: bool, after: str | None, limit: int) -> Page[Version]:
    """Return a page of the versions that hold the bytes with a digest, in the order of publishing. Raises Invalid."""
    if not is_digest(sha256):
        raise Invalid(f"the digest is {sha256[:80]!r}: expected sha256: and 64 hexadecimal digits")
    found = queries.versions.list_holders(
        connection, sha256, quarantined=quarantined, after=number_after(after), limit=check_limit(limit) + 1
    )
    return page_of(connection, found, limit, key=lambda row: str(row.id))


def page_of(
    connection: Connection, found: Iterator[MeasuredVersion], limit: int, *, key: Callable[[VersionRow], str]
) -> Page[Version]:
    """Make a page of versions, with fewer than `limit` items if they have more than MAX_BYTES."""
    rows, size = [], 0
    for version in found:
        rows.append(version.row)
        size += version.length + _text_bytes(version.row)
        if len(rows) > limit or (size > MAX_BYTES and len(rows) > 1):
            break
    fitting = limit if size <= MAX_BYTES else min(limit, max(1, len(rows) - 1))
    return page(rows, fitting, key=key, records=lambda shown: records(connection, shown))


def _text_bytes(row: VersionRow) -> int:
    """Return at least the bytes that the text of a version takes in an answer."""
    free = (row.note, row.withdrawn_reason, row.quarantined_reason)
    return _FIELDS + len(row.path) + len(row.pin_path or "") + 4 * sum(len(text) for text in free if text)


def records(connection: Connection, rows: list[VersionRow]) -> list[Version]:
    """Return the public records of versions, with one query for all their files."""
    files = queries.versions.files_of(connection, [row.id for row in rows])
    return [row.record(files[row.id]) for row in rows]


def lock_version(connection: Connection, ref: str) -> VersionRow:
    """Return one version by number or digest, with its node locked for the transaction. Raises NotFound, Invalid.

    A head or an alias is refused, because it may name another version when a client repeats the request.
    """
    parsed = parse_ref(ref)
    if parent_of(parsed.path) is None:
        raise Invalid(versionless(parsed.path))
    node = find_node(connection, parsed.path)
    queries.nodes.lock_node(connection, node.id)
    selector = choose(connection, node, parsed.selector)
    row = queries.versions.find_version(connection, node.id, selector)
    if row is None:
        raise no_version(connection, node, selector)
    if not isinstance(selector, int) and not is_digest(selector):
        raise Invalid(
            f"{ref} is version {row.number} now, and may be another one at any time: give the number or the digest, "
            f"as {row.ref} does"
        )
    return row


def check_unnamed(connection: Connection, row: VersionRow, purpose: str) -> None:
    """Raise Conflict if an alias names a version."""
    names = queries.aliases.aliases_of(connection, row.id)
    if names:
        raise Conflict(
            f"{row.ref} is named by the alias {listed(names)}: move it by `loratree alias set {row.path} {names[0]} "
            f"VERSION`, or remove it by `loratree alias rm {row.path} {names[0]}`, then {purpose}"
        )


def emptied(connection: Connection, node: NodeRow, *, asked: str) -> NotFound | None:
    """Return the error for a node without a head that had versions, for a ref to `asked`; None for a grouping."""
    above = node.path.rpartition("/")[0]
    there = "" if asked == node.path else f"{asked} has no version, and "
    if newest := queries.versions.find_newest(connection, node.id):
        return NotFound(
            f"{there}{node.path} has no version that is not withdrawn: name one by its number, such as {newest.ref}, "
            f"or ask for {above} to leave it out"
        )
    if deleted := queries.tombstones.list_tombstones(connection, node.id, before=None, limit=1):
        return Gone(
            f"{there}every version of {node.path} was deleted, {node.path}@{deleted[0].number} last "
            f"({deleted[0].reason}): publish a new one, or ask for {above} to leave it out"
        )
    return None


def no_version(connection: Connection, node: NodeRow, selector: Selector) -> NotFound:
    """Return the error for a selector that selects no version at the node, with the selectors that would work."""
    if node.level == "base":
        return NotFound(versionless(node.path))
    deleted = None if selector is None else queries.tombstones.find_tombstone(connection, node.id, selector)
    if deleted is not None:
        return Gone(
            f"{deleted.path}@{deleted.number} was deleted on {rfc3339(deleted.deleted_at)[:10]} ({deleted.reason}): "
            f"name another version, see `loratree show {deleted.path}`"
        )
    newest = queries.versions.find_newest(connection, node.id)
    if node.head is None and newest:
        return NotFound(
            f"{node.path} has no version that is not withdrawn: name one by its number, such as {newest.ref}"
        )
    if not newest:
        return emptied(connection, node, asked=node.path) or NotFound(
            f"{node.path} is a grouping without a version of its own: name a node that has one"
        )
    aliases = [alias.name for alias in queries.aliases.list_aliases(connection, [node.id])]
    named = f", and the {'alias' if len(aliases) == 1 else 'aliases'} {listed(aliases)}" if aliases else " and no alias"
    numbers = "version 1" if newest.number == 1 else f"versions 1 to {newest.number}"
    similar = _suggest(selector, aliases, newest) if isinstance(selector, str) else ""
    return NotFound(f"{node.path} has no version {selector}{similar}: it has {numbers}{named}")


def _suggest(selector: str, aliases: list[str], newest: VersionRow) -> str:
    """Suggest what a selector that is no alias may mean: `v2` and `version-2` a number, `head` and `last` the head."""
    numbered = _NUMBERED.fullmatch(selector)
    if numbered is not None and int(numbered[1]) <= newest.number:
        return f" (did you mean {newest.path}@{numbered[1]}?)"
    if similar := nearest(selector, aliases):
        return similar
    return f" (did you mean {HEAD!r}?)" if selector in _HEADS else ""
