"""Removing what nothing depends on: empty nodes, and bases whose trees have no versions."""

from sqlalchemy import Connection

from loratree_registry.catalog.bases import find_base
from loratree_registry.catalog.nodes import find_node
from loratree_registry.core.paths import base_of, parent_of
from loratree_registry.core.text import counted
from loratree_registry.database import queries
from loratree_registry.errors import Conflict, Invalid


def remove_node(connection: Connection, path: str) -> None:
    """Remove a node that has no children, no versions, and no tombstones; the node above records it.

    A node with tombstones stays, so that the numbers of deleted versions are never used again. Raises NotFound, Invalid
    for a base, Conflict if the node is not empty.
    """
    node, parent = find_node(connection, path), parent_of(path)
    if parent is None:
        raise Invalid(f"{path} is a base: remove it by `loratree base rm {path}`")
    queries.nodes.lock_node(connection, node.id)
    if children := queries.nodes.list_children(connection, node.id, after=None, limit=1):
        raise Conflict(f"{path} is not empty: {children[0].path} is below it, remove that first")
    if queries.versions.find_newest(connection, node.id) is not None:
        raise Conflict(f"{path} is not empty: it has versions, which `loratree show {path}` lists")
    if queries.tombstones.list_tombstones(connection, node.id, before=None, limit=1):
        raise Conflict(
            f"{path} stays, because its tombstones keep the numbers of deleted versions from being used again: "
            f"`loratree tree` hides it, and `loratree base rm {base_of(path)}` removes the tree once no version is "
            "left in it"
        )
    queries.removing.remove_node(connection, node.id)
    queries.events.insert_event(connection, parent, "node-removed", removed=path)


def remove_base(connection: Connection, name: str) -> None:
    """Remove a base whose tree has no version, and the tree with it. `loratree gc` collects its stored weights.

    Raises NotFound, and Conflict if a version is left, or the tombstone of a quarantined one.
    """
    queries.removing.wait_for_writers(connection)
    base = find_base(connection, name)
    if queries.removing.has_versions(connection, base.id):
        raise Conflict(f"the base {name} cannot be removed: versions depend on it, delete them first")
    if count := queries.removing.count_quarantined(connection, base.id):
        raise Conflict(
            f"the base {name} cannot be removed: {counted(count, 'deleted version')} of its tree "
            f"{'was' if count == 1 else 'were'} quarantined, and a tombstone keeps each from being published again"
        )
    queries.removing.remove_base(connection, base.id)
