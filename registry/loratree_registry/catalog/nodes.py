"""Nodes: places in the tree, each deeper in level than its parent."""

from collections import defaultdict

from sqlalchemy import Connection

from loratree_registry.catalog.bases import unknown_base
from loratree_registry.catalog.paging import check_limit, page
from loratree_registry.core.kinds import kinds_of
from loratree_registry.core.paths import (
    LEVELS,
    Level,
    ancestors_of,
    base_of,
    check_same_level,
    parse_path,
    planned_level,
)
from loratree_registry.core.records import Count, Node, Page
from loratree_registry.core.registry import MAX_COUNT
from loratree_registry.core.text import nearest_name
from loratree_registry.core.times import rfc3339
from loratree_registry.database import queries
from loratree_registry.database.rows import AliasRow, HeadRow, NodeRow
from loratree_registry.errors import Invalid, NotFound

_ALIASES = 20_000  # on a page: 3 MB of names
_SIMILAR = 200  # names to look for a similar one among
_NO_HEAD = HeadRow([], {}, [], {}, None)


def ensure_trail(connection: Connection, path: str, *, level: Level | None) -> list[NodeRow]:
    """Create the missing nodes on the way to `path`, and return all nodes from the base to `path`.

    Concurrent callers get the same nodes. Raises NotFound if the base does not exist, Conflict if the node has another
    level, Invalid if the levels do not fit.
    """
    if level is not None and level not in LEVELS:
        raise Invalid(f"level {level[:80]!r} is not known: expected one of {', '.join(LEVELS)}")
    nodes = queries.nodes.nodes_on_path(connection, parse_path(path))
    if not nodes:
        raise unknown_base(connection, base_of(path))
    missing = [*ancestors_of(path), path][len(nodes) :]
    for below, step in zip(range(len(missing) - 1, -1, -1), missing, strict=True):
        above = nodes[-1]
        level_here = planned_level(step, above.path, above.level, below=below, leaf=level)
        nodes.append(_create(connection, above, step, level_here))
    check_same_level(path, nodes[-1].level, level)
    return nodes


def create_node(connection: Connection, path: str, *, level: Level | None) -> Node:
    """Create a grouping and its missing ancestors, or return the existing node as it is if it has the same level."""
    return _to_records(connection, [ensure_trail(connection, path, level=level)[-1]])[0]


def trail(connection: Connection, path: str) -> list[NodeRow]:
    """Return the nodes from the base to `path`, the base first. Raises NotFound."""
    nodes = queries.nodes.nodes_on_path(connection, parse_path(path))
    if not nodes:
        raise unknown_base(connection, base_of(path))
    if nodes[-1].path != path:
        above = nodes[-1].path
        raise NotFound(
            f"{path} is not known{_suggest(connection, path, nodes[-1])}: the nearest node above it is {above}, "
            f"see `loratree ls {above}` for what it holds"
        )
    return nodes


def _suggest(connection: Connection, path: str, above: NodeRow) -> str:
    """Suggest the child of `above` that is most like the first missing node of `path`.

    Of a node with many children, it looks at the first ones and at those that begin with the same letter.
    """
    missing = path[len(above.path) + 1 :].partition("/")[0]
    names = {
        child.path[len(above.path) + 1 :]
        for start in (None, f"{above.path}/{missing[:1]}")
        for child in queries.nodes.list_children(connection, above.id, after=start, limit=_SIMILAR)
    }
    similar = nearest_name(missing, names)
    return "" if similar is None else f" (did you mean {above.path}/{similar}?)"


def find_node(connection: Connection, path: str) -> NodeRow:
    """Return one node's row. Raises NotFound."""
    return trail(connection, path)[-1]


def node(connection: Connection, path: str) -> Node:
    """Return one node. Raises NotFound."""
    return _to_records(connection, [find_node(connection, path)])[0]


def children(connection: Connection, path: str, *, after: str | None, limit: int) -> Page[Node]:
    """Return a page of the nodes directly below `path`, by path."""
    parent = find_node(connection, path)
    rows = queries.nodes.list_children(connection, parent.id, after=_parse_after(after), limit=check_limit(limit) + 1)
    return _make_page(connection, rows, limit)


def descendants(connection: Connection, path: str, *, after: str | None, limit: int) -> Page[Node]:
    """Return a page of all nodes below `path`, in byte order of their paths."""
    find_node(connection, path)
    rows = queries.nodes.list_descendants(connection, path, after=_parse_after(after), limit=check_limit(limit) + 1)
    return _make_page(connection, rows, limit)


def count(connection: Connection, path: str) -> Count:
    """Count the nodes below `path`, up to MAX_COUNT. Raises NotFound."""
    find_node(connection, path)
    number = queries.nodes.count_descendants(connection, path, limit=MAX_COUNT + 1)
    return Count(path=path, descendants=min(number, MAX_COUNT), more=number > MAX_COUNT)


def _create(connection: Connection, parent: NodeRow, path: str, level: Level) -> NodeRow:
    """Create a node. If another writer created it first, return the other writer's node, at whatever level."""
    created = queries.nodes.insert_node(connection, base_id=parent.base_id, parent_id=parent.id, path=path, level=level)
    if created is not None:
        queries.events.insert_event(connection, path, "node-created", level=level)
    return queries.nodes.nodes_on_path(connection, path)[-1]


def _parse_after(after: str | None) -> str | None:
    return None if after is None else parse_path(after)


def _make_page(connection: Connection, rows: list[NodeRow], limit: int) -> Page[Node]:
    """Make a page of nodes, with fewer than `limit` items if they have more than _ALIASES aliases together."""
    count = len(rows[:limit])
    while len(aliases := _aliases_of(connection, rows[:count])) > _ALIASES and count > 1:
        count //= 2
    return page(
        rows, max(1, count), key=lambda row: row.path, records=lambda shown: _to_records(connection, shown, aliases)
    )


def _aliases_of(connection: Connection, rows: list[NodeRow]) -> list[AliasRow]:
    """Return the aliases of nodes, of one node all of them, else at most one more than a page holds."""
    most = _ALIASES + 1 if len(rows) > 1 else None
    return queries.aliases.list_aliases(connection, [row.id for row in rows], limit=most)


def _to_records(connection: Connection, rows: list[NodeRow], aliases: list[AliasRow] | None = None) -> list[Node]:
    """Return the public records of nodes, with their aliases: three queries for a whole page."""
    keys = [row.id for row in rows]
    names: dict[int, dict[str, int]] = defaultdict(dict)
    for alias in queries.aliases.list_aliases(connection, keys) if aliases is None else aliases:
        names[alias.node_id][alias.name] = alias.number
    parents = queries.nodes.nodes_with_children(connection, keys)
    heads = queries.nodes.heads_of(connection, keys)
    return [
        Node(
            path=row.path,
            level=row.level,
            head=row.head,
            has_children=row.id in parents,
            aliases=names[row.id],
            created_at=rfc3339(row.created_at),
            marks=head.marks,
            kinds=kinds_of(head.config, ranks=head.ranks, rules=head.rules),
            ranks=head.ranks,
            pin=head.pin,
        )
        for row in rows
        for head in (heads.get(row.id, _NO_HEAD),)
    ]
