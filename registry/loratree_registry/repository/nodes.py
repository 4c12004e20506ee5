"""Queries of nodes."""

from typing import Any

from sqlalchemy import Connection, func, select, update

from loratree_registry.models import bases, nodes
from loratree_registry.paths import ancestors_of, descendant_range
from loratree_registry.repository.shared import head_of, insert_new, past
from loratree_registry.rows import NodeRow

_NODE = select(
    nodes.c.id,
    nodes.c.base_id,
    bases.c.name.label("base"),
    bases.c.digest.label("base_digest"),
    nodes.c.path,
    nodes.c.level,
    head_of(nodes.c.id).label("head"),
    nodes.c.created_at,
).join_from(nodes, bases)


def insert_node(connection: Connection, **values: Any) -> int | None:
    """Inserts a node; None where its path is taken."""
    key: int | None = insert_new(connection, nodes, values)
    return key


def nodes_on_path(connection: Connection, path: str) -> list[NodeRow]:
    """The nodes that exist from the base to `path`, the base first."""
    query = _NODE.where(nodes.c.path.in_([*ancestors_of(path), path])).order_by(nodes.c.path)
    return [NodeRow(**row._asdict()) for row in connection.execute(query)]


def list_children(connection: Connection, node_id: int, *, after: str | None, limit: int) -> list[NodeRow]:
    """The nodes directly below one, by path."""
    query = _NODE.where(nodes.c.parent_id == node_id).order_by(nodes.c.path).limit(limit)
    return [NodeRow(**row._asdict()) for row in connection.execute(past(query, nodes.c.path, after))]


def list_descendants(connection: Connection, path: str, *, after: str | None, limit: int) -> list[NodeRow]:
    """Every node below `path`, by path."""
    first, end = descendant_range(path)
    query = _NODE.where(
        nodes.c.path > max(first, after or first), nodes.c.path < end
    )  # one bound a side, for the index
    return [NodeRow(**row._asdict()) for row in connection.execute(query.order_by(nodes.c.path).limit(limit))]


def count_descendants(connection: Connection, path: str, *, limit: int) -> int:
    """How many nodes lie below `path`, counted to `limit` at most."""
    first, end = descendant_range(path)
    below = select(nodes.c.path).where(nodes.c.path > first, nodes.c.path < end).limit(limit).subquery()
    return connection.scalar(select(func.count()).select_from(below)) or 0


def nodes_with_children(connection: Connection, node_ids: list[int]) -> set[int]:
    """Those of the nodes that have a node below them."""
    # Not EXISTS, nor LIMIT 1: where one node has 100,000 children, PostgreSQL then reads all nodes for a page, 20 to
    # 800 ms. The least path has to come from the index on (parent_id, path): below 1 ms.
    below = nodes.alias("below")
    first = select(func.min(below.c.path)).where(below.c.parent_id == nodes.c.id).scalar_subquery()
    return set(connection.scalars(select(nodes.c.id).where(nodes.c.id.in_(node_ids), first.is_not(None))))


def lock_node(connection: Connection, node_id: int) -> None:
    """Holds a node's row until the transaction ends; SQLite's writers have the whole database already."""
    connection.execute(select(nodes.c.id).where(nodes.c.id == node_id).with_for_update(key_share=True))


def next_number(connection: Connection, node_id: int) -> int:
    """Takes the next version number at a node, under its row's lock."""
    taken = update(nodes).where(nodes.c.id == node_id).values(last_number=nodes.c.last_number + 1)
    number: int = connection.execute(taken.returning(nodes.c.last_number)).scalar_one()
    return number
