"""Lines of an export as rows of the database, and as what events tell of them."""

from dataclasses import asdict, fields
from typing import Any

from loratree_registry.errors import Invalid
from loratree_registry.exports.lines import AliasLine, NodeLine, VersionLine
from loratree_registry.repository.importing import KeptNode


def node_row(line: NodeLine, node: KeptNode, parent: KeptNode | None) -> dict[str, Any]:
    """A node's row."""
    return {
        "id": node.id,
        "base_id": node.base_id,
        "parent_id": parent.id if parent else None,
        "path": line.path,
        "level": line.level,
        "last_number": line.last_number,
        "created_at": line.created_at,
    }


def version_event(line: VersionLine) -> dict[str, Any]:
    """What the event of an imported version tells."""
    pin = f"{line.pin.path}@{line.pin.number}" if line.pin else None
    return {"version": line.number, "digest": line.digest, "pin": pin}


def version_row(line: VersionLine, node: KeptNode) -> dict[str, Any]:
    """A version's row, but for its key and its pin's. Raises Invalid."""
    if line.number > node.last_number:
        raise Invalid(f"{line.ref} has a number that its node has not given out: export it again")
    return {
        "node_id": node.id,
        "base_id": node.base_id,
        "number": line.number,
        "digest": line.digest,
        "content": line.content,
        "pin_found": line.found,
        "config": line.config,
        "summary": asdict(line.summary),
        "size": sum(file.size for file in line.files),
        "note": line.note,
        "created_at": line.created_at,
        "withdrawn_at": line.withdrawn.at if line.withdrawn else None,
        "withdrawn_reason": line.withdrawn.reason if line.withdrawn else None,
        "quarantined_at": line.quarantined.at if line.quarantined else None,
        "quarantined_reason": line.quarantined.reason if line.quarantined else None,
    }


def fields_of(line: Any, *left_out: str) -> dict[str, Any]:
    """A line's fields by name, but for some."""
    return {field.name: getattr(line, field.name) for field in fields(line) if field.name not in left_out}


def alias_event(line: AliasLine) -> dict[str, Any]:
    """What the event of a set alias tells."""
    return {"alias": line.name, "version": line.number, "previous": None}
