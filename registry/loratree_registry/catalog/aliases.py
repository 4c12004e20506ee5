"""Aliases: movable names of versions, moved by compare-and-swap so that no caller overwrites an unseen move."""

from typing import Final

from sqlalchemy import Connection

from loratree_registry.catalog.nodes import find_node
from loratree_registry.catalog.versions import no_version
from loratree_registry.core.paths import MAX_NUMBER, parse_alias
from loratree_registry.core.records import Alias
from loratree_registry.core.times import rfc3339
from loratree_registry.database import queries
from loratree_registry.database.rows import AliasRow, NodeRow
from loratree_registry.errors import Conflict, Invalid

MAX_ALIASES: Final = 1_000  # at a node: every listing shows them with the node


def set_alias(connection: Connection, path: str, name: str, *, version: int, expected: int | None) -> Alias:
    """Move an alias to `version` if it is at `expected` (None: not set). Raises Conflict with its current version."""
    node = _check_and_find(connection, path, name, version, expected)
    # The lock keeps the version from being withdrawn now, and a Conflict reports where the alias really is.
    queries.nodes.lock_node(connection, node.id)
    target = queries.versions.find_version(connection, node.id, version)
    if target is None:
        raise no_version(connection, node, version)
    if target.withdrawn_reason is not None:
        raise Conflict(
            f"{target.ref} was withdrawn ({target.withdrawn_reason}), so no alias may name it: choose another version, "
            f"or take that back by `loratree withdraw {target.ref} --undo`"
        )
    if expected is None:
        swapped = queries.aliases.insert_alias(connection, node.id, name, target.id)
    else:
        swapped = queries.aliases.move_alias(connection, node.id, name, target.id, expected=expected)
    if not swapped:
        raise _conflict_of(connection, node, name, expected)
    if expected is None and queries.aliases.count_aliases(connection, node.id) > MAX_ALIASES:
        raise Conflict(
            f"{path} has {MAX_ALIASES} aliases, and no node has more: remove one by `loratree alias rm {path} NAME`"
        )
    if version != expected:  # a client that lost the answer repeats its request, which changes nothing
        queries.events.insert_event(connection, path, "alias-set", alias=name, version=version, previous=expected)
    return next(alias for alias in _to_records(connection, node) if alias.name == name)


def delete_alias(connection: Connection, path: str, name: str, *, expected: int) -> None:
    """Delete an alias if it is at `expected`. Raises Conflict with its current version."""
    node = _check_and_find(connection, path, name, expected, None)
    queries.nodes.lock_node(connection, node.id)  # so that a Conflict reports where the alias really is
    if not queries.aliases.delete_alias(connection, node.id, name, expected=expected):
        raise _conflict_of(connection, node, name, expected)
    queries.events.insert_event(connection, path, "alias-deleted", alias=name, previous=expected)


def list_aliases(connection: Connection, path: str) -> list[Alias]:
    """Return the aliases at `path`, by name."""
    return _to_records(connection, find_node(connection, path))


def _check_and_find(connection: Connection, path: str, name: str, version: int, expected: int | None) -> NodeRow:
    parse_alias(name)
    for number in (version, expected):
        if number is not None and not 1 <= number <= MAX_NUMBER:
            raise Invalid(f"a version's number is 1 to {MAX_NUMBER}, got {number}")
    return find_node(connection, path)


def _conflict_of(connection: Connection, node: NodeRow, name: str, expected: int | None) -> Conflict:
    now = [row.number for row in queries.aliases.list_aliases(connection, [node.id]) if row.name == name]
    got = f"at version {now[0]}" if now else "not set"
    wanted = "not to be set" if expected is None else f"at version {expected}"
    sentence = f"the alias {name} of {node.path} is {got}, expected {wanted}: look again, then decide"
    return Conflict(sentence, current=now[0] if now else 0)


def _to_records(connection: Connection, node: NodeRow) -> list[Alias]:
    return [_to_record(node, row) for row in queries.aliases.list_aliases(connection, [node.id])]


def _to_record(node: NodeRow, row: AliasRow) -> Alias:
    return Alias(path=node.path, name=row.name, version=row.number, updated_at=rfc3339(row.updated_at))
