"""Conversions from lines of an export to database rows and event details, and from rows to lines."""

from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Row

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.manifest import read_manifest
from loratree_registry.core.records import AdapterSummary
from loratree_registry.database.queries.importing import KeptNode
from loratree_registry.errors import Invalid
from loratree_registry.housekeeping.exports.format import (
    AliasLine,
    BaseLine,
    EventLine,
    FileLine,
    MarkLine,
    NodeLine,
    PinLine,
    TombstoneLine,
    VersionLine,
)


def node_row(line: NodeLine, node: KeptNode, parent: KeptNode | None) -> dict[str, Any]:
    """Return the row of a node."""
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
    """Return the detail of the event for an imported version."""
    pin = f"{line.pin.path}@{line.pin.number}" if line.pin else None
    return {"version": line.number, "digest": line.digest, "pin": pin}


def version_row(line: VersionLine, node: KeptNode) -> dict[str, Any]:
    """Return the row of a version, without its own key and the key of its pin. Raises Invalid."""
    if line.number > node.last_number:
        raise Invalid(f"{line.ref} has a number that its node has not given out: export it again")
    return {
        "node_id": node.id,
        "base_id": node.base_id,
        "number": line.number,
        "digest": line.digest,
        "content": line.content,
        "pin_found": "explicit" if line.found == "forced" else line.found,
        "pin_forced": line.found == "forced",
        "config": line.config,
        "summary": asdict(line.summary),
        "size": sum(file.size for file in line.files),
        "note": line.note,
        "created_at": line.created_at,
        "withdrawn_at": line.withdrawn.at if line.withdrawn else None,
        "withdrawn_reason": line.withdrawn.reason if line.withdrawn else None,
        "quarantined_at": line.quarantined.at if line.quarantined else None,
        "quarantined_reason": line.quarantined.reason if line.quarantined else None,
        "documents": line.documents or None,
    }


def fields_of(line: Any, *left_out: str) -> dict[str, Any]:
    """Return the fields of a line by name, except those in `left_out`."""
    return {field.name: getattr(line, field.name) for field in fields(line) if field.name not in left_out}


def alias_event(line: AliasLine) -> dict[str, Any]:
    """Return the detail of the event for a set alias."""
    return {"alias": line.name, "version": line.number, "previous": None}


def base_line(row: Row[Any], files: list[FileDigest]) -> BaseLine:
    """Return a base's row and the files of its weights as a line."""
    return BaseLine(
        name=row.name,
        digest=row.digest,
        source=row.source,
        created_at=row.created_at,
        files=_file_lines(files),
        manifest=read_manifest(row.manifest),
    )


def node_line(row: Row[Any]) -> NodeLine:
    """Return a node's row as a line."""
    return NodeLine(**row._asdict())


def version_line(row: Row[Any], files: list[FileDigest]) -> VersionLine:
    """Return a version's row and its files as a line."""
    pin = None if row.pin_path is None else PinLine(path=row.pin_path, number=row.pin_number, digest=row.pin_digest)
    return VersionLine(
        path=row.path,
        number=row.number,
        digest=row.digest,
        content=row.content,
        pin=pin,
        found="forced" if row.pin_forced else row.pin_found,
        config=row.config,
        summary=AdapterSummary(**row.summary),
        files=_file_lines(files),
        note=row.note,
        created_at=row.created_at,
        withdrawn=_mark_line(row.withdrawn_reason, row.withdrawn_at),
        quarantined=_mark_line(row.quarantined_reason, row.quarantined_at),
        documents=row.documents or {},
    )


def tombstone_line(row: Row[Any]) -> TombstoneLine:
    """Return a tombstone's row as a line."""
    return TombstoneLine(**row._asdict())


def alias_line(row: Row[Any]) -> AliasLine:
    """Return an alias's row as a line."""
    return AliasLine(**row._asdict())


def event_line(row: Row[Any]) -> EventLine:
    """Return an event's row as a line."""
    return EventLine(**row._asdict())


def _file_lines(files: list[FileDigest]) -> list[FileLine]:
    return [FileLine(name=file.name, size=file.size, sha256=file.sha256) for file in files]


def _mark_line(reason: str | None, at: Any) -> MarkLine | None:
    return None if reason is None else MarkLine(reason=reason, at=at)
