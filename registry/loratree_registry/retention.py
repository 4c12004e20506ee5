"""Retention: of the versions at a node, the newest are kept, and those that something needs."""

from typing import Final

from sqlalchemy import Connection

from loratree_registry import repository
from loratree_registry.deleting import bury
from loratree_registry.errors import Invalid
from loratree_registry.nodes import find_node
from loratree_registry.schemas import Retained

MAX_KEEP: Final = 999_999_999
_AT_ONCE = 500  # versions that one statement deletes


def retain(connection: Connection, path: str, *, keep: int, dry_run: bool) -> Retained:
    """Deletes all versions at `path` but the newest `keep`, the head, and what an alias names or a pin.

    Raises NotFound, Invalid.
    """
    if not 1 <= keep <= MAX_KEEP:
        raise Invalid(f"retention keeps 1 to {MAX_KEEP} versions of a node, got {keep}")
    node = find_node(connection, path)
    repository.lock_node(connection, node.id)
    found = repository.expendable_versions(connection, node.id, keep=keep)
    if not dry_run:
        for start in range(0, len(found), _AT_ONCE):
            some = [(key, number) for key, number, _ in found[start : start + _AT_ONCE]]
            bury(connection, node.path, some, f"retention kept the newest {keep}")
    left = repository.count_versions(connection, node.id) - (len(found) if dry_run else 0)
    return Retained(
        path=node.path, kept=left, deleted=[number for _, number, _ in found], bytes=sum(size for *_, size in found)
    )
