"""Aliases: movable names of versions, moved by compare-and-swap."""

from sqlalchemy import Connection

from loratree_registry.catalog.nodes import find_node
from loratree_registry.catalog.versions import no_version
from loratree_registry.core.paths import MAX_NUMBER, parse_alias
from loratree_registry.core.records import Alias
from loratree_registry.core.times import rfc3339
from loratree_registry.database import queries
from loratree_registry.database.rows import AliasRow, NodeRow
from loratree_registry.errors import Conflict, Invalid


def set_alias(connection: Connection, path: str, name: str, *, version: int, expected: int | None) -> Alias:
    """Moves an alias to `version` if it is at `expected` now (None: not set); else Conflict with where it is."""
    node = _checked(connection, path, name, version, expected)
    # Nobody withdraws the version meanwhile, and a conflict tells where the alias was when it was refused.
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
        raise _conflict(connection, node, name, expected)
    if version != expected:  # a command that is sent again, after its answer was lost, tells of nothing new
        queries.events.insert_event(connection, path, "alias-set", alias=name, version=version, previous=expected)
    return next(alias for alias in _records(connection, node) if alias.name == name)


def delete_alias(connection: Connection, path: str, name: str, *, expected: int) -> None:
    """Removes an alias if it is at `expected` now; else Conflict with where it is."""
    node = _checked(connection, path, name, expected, None)
    queries.nodes.lock_node(connection, node.id)  # so that a conflict tells where the alias was when it was refused
    if not queries.aliases.delete_alias(connection, node.id, name, expected=expected):
        raise _conflict(connection, node, name, expected)
    queries.events.insert_event(connection, path, "alias-deleted", alias=name, previous=expected)


def list_aliases(connection: Connection, path: str) -> list[Alias]:
    """The aliases at `path`, by name."""
    return _records(connection, find_node(connection, path))


def _checked(connection: Connection, path: str, name: str, version: int, expected: int | None) -> NodeRow:
    parse_alias(name)
    for number in (version, expected):
        if number is not None and not 1 <= number <= MAX_NUMBER:
            raise Invalid(f"a version's number is 1 to {MAX_NUMBER}, got {number}")
    return find_node(connection, path)


def _conflict(connection: Connection, node: NodeRow, name: str, expected: int | None) -> Conflict:
    now = [row.number for row in queries.aliases.list_aliases(connection, [node.id]) if row.name == name]
    found = f"at version {now[0]}" if now else "not set"
    wanted = "not to be set" if expected is None else f"at version {expected}"
    sentence = f"the alias {name} of {node.path} is {found}, expected {wanted}: look again, then decide"
    return Conflict(sentence, current=now[0] if now else 0)


def _records(connection: Connection, node: NodeRow) -> list[Alias]:
    return [_record(node, row) for row in queries.aliases.list_aliases(connection, [node.id])]


def _record(node: NodeRow, row: AliasRow) -> Alias:
    return Alias(path=node.path, name=row.name, version=row.number, updated_at=rfc3339(row.updated_at))
