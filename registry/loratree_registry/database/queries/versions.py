"""Queries of versions. Each statement is built once, because building took most of the time of a resolve."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Select,
    Text,
    bindparam,
    cast,
    func,
    literal,
    null,
    select,
    tuple_,
    update,
)

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.paths import is_digest
from loratree_registry.core.times import now
from loratree_registry.database.queries.shared import begins_with, head_of, holds_bytes
from loratree_registry.database.rows import VersionRow
from loratree_registry.database.tables import aliases, bases, nodes, version_files, versions

Selector = int | str | None
Files = list[FileDigest]
_BUFFER = 16  # rows that are fetched from PostgreSQL at once, up to 2 MiB each


@dataclass(frozen=True, slots=True)
class MeasuredVersion:
    """A version, and the length of its config and summary as JSON, in characters."""

    row: VersionRow
    length: int


_pins, _pin_nodes = versions.alias("pins"), nodes.alias("pin_nodes")
_LINKS: dict[str, ColumnElement[Any]] = {
    "path": nodes.c.path,
    "level": nodes.c.level,
    "base": bases.c.name,
    "base_digest": bases.c.digest,
    "pin_path": _pin_nodes.c.path,
    "pin_number": _pins.c.number,
    "pin_digest": _pins.c.digest,
    "head": head_of(nodes.c.id),
    "pin_head": head_of(_pin_nodes.c.id),
}


def _select_rows(**columns: ColumnElement[Any]) -> Select[Any]:
    """Select the fields of VersionRow in their order; `columns` take the place of the tables' own."""
    chosen = _LINKS | columns
    return (
        select(*((chosen[name] if name in chosen else versions.c[name]).label(name) for name in VersionRow._fields))
        .join_from(versions, nodes, versions.c.node_id == nodes.c.id)
        .join(bases, nodes.c.base_id == bases.c.id)
        .outerjoin(_pins, versions.c.pin_id == _pins.c.id)
        .outerjoin(_pin_nodes, _pins.c.node_id == _pin_nodes.c.id)
    )


_VERSION = _select_rows()  # for what shows the whole record
_BARE = _select_rows(config=null())
_length = func.length(cast(versions.c.config, Text)) + func.length(cast(versions.c.summary, Text))
_MEASURED = _VERSION.add_columns(_length.label("length"))

_FILES = (
    select(version_files)
    .where(version_files.c.version_id.in_(bindparam("version_ids", expanding=True)))
    .order_by(version_files.c.name)
)
_DOCUMENTS = select(versions.c.documents).where(versions.c.id == bindparam("version_id"))
_node_id: BindParameter[int] = bindparam("node_id")
_selector: BindParameter[Selector] = bindparam("selector")
_leaf_nodes = nodes.alias("leaf_nodes")
_START = select(versions.c.id, versions.c.pin_id, literal(0).label("depth"))
_FILE = ("name", "size", "sha256")
_WIDTH = len(VersionRow._fields)  # of what a query selects, before what it adds


def _is_selected(kind: str, node: ColumnElement[int]) -> ColumnElement[bool]:
    """Return the condition that a version at `node` is the one that a selector of this kind selects."""
    if kind == "head":
        return versions.c.number == head_of(node)
    if kind == "alias":
        named = select(aliases.c.version_id).where(aliases.c.node_id == node, aliases.c.name == _selector)
        return versions.c.id == named.scalar_subquery()
    return versions.c[kind] == _selector


@cache
def _select_one(kind: str) -> Select[Any]:
    """Select the version at a node by a selector of this kind."""
    return _VERSION.where(versions.c.node_id == _node_id, _is_selected(kind, _node_id))


@cache
def _select_chain(kind: str, configs: bool) -> Select[Any]:
    """Select the pinned chain of the version at a node, by a selector of this kind."""
    here = _START.where(versions.c.node_id == _node_id, _is_selected(kind, _node_id))
    return _link_up(here, _VERSION if configs else _BARE)


@cache
def _select_chain_at(kind: str) -> Select[Any]:
    """Select the pinned chain of the version at a path, a row for each file, so that a resolve is one round trip."""
    at = _START.join_from(versions, _leaf_nodes, versions.c.node_id == _leaf_nodes.c.id)
    here = at.where(_leaf_nodes.c.path == bindparam("path"), _is_selected(kind, _leaf_nodes.c.id))
    with_files = _BARE.outerjoin(version_files, version_files.c.version_id == versions.c.id)
    named = (version_files.c[name].label(f"file_{name}") for name in _FILE)
    return _link_up(here, with_files.add_columns(*named)).order_by(version_files.c.name)


def _link_up(start: Select[Any], shown: Select[Any]) -> Select[Any]:
    """Select, root to leaf, the versions that pins lead to from those in `start`."""
    link = start.cte("link", recursive=True)
    pinned = versions.alias("pinned")
    link = link.union_all(select(pinned.c.id, pinned.c.pin_id, link.c.depth + 1).where(pinned.c.id == link.c.pin_id))
    return shown.join(link, link.c.id == versions.c.id).order_by(link.c.depth.desc())


def _select_quarantined() -> Select[Any]:
    """Select the quarantined versions in the pinned chains of versions."""
    start = select(versions.c.id, versions.c.pin_id)
    link = start.where(versions.c.id.in_(bindparam("version_ids", expanding=True))).cte("link", recursive=True)
    pinned = versions.alias("pinned")
    link = link.union(select(pinned.c.id, pinned.c.pin_id).where(pinned.c.id == link.c.pin_id))
    return _BARE.join(link, link.c.id == versions.c.id).where(versions.c.quarantined_at.is_not(None))


_QUARANTINED = _select_quarantined()


def find_version(connection: Connection, node_id: int, selector: Selector) -> VersionRow | None:
    """Return the version at a node by its number, an alias, its digest, or None for the head."""
    row = connection.execute(_select_one(_kind_of(selector)), {"node_id": node_id, "selector": selector}).one_or_none()
    return None if row is None else VersionRow._make(row)


def versions_from_digest(connection: Connection, node_id: int, start: str, *, limit: int) -> list[tuple[int, str]]:
    """Return the number and digest of the versions at a node whose digests begin with `start`, by digest."""
    here = (versions.c.node_id == node_id, *begins_with(versions.c.digest, start))
    query = select(versions.c.number, versions.c.digest).where(*here).order_by(versions.c.digest).limit(limit)
    return [(row.number, row.digest) for row in connection.execute(query)]


def find_newest(connection: Connection, node_id: int) -> VersionRow | None:
    """Return the version at a node with the highest number, without its config, or None."""
    query = _BARE.where(versions.c.node_id == node_id).order_by(versions.c.number.desc()).limit(1)
    return next(iter(_read(connection, query)), None)


def list_versions(
    connection: Connection, node_id: int, *, content: str | None, before: int | None, limit: int
) -> Iterator[MeasuredVersion]:
    """Yield the versions at a node, newest first; they are read as they are taken."""
    query = _MEASURED.where(versions.c.node_id == node_id).order_by(versions.c.number.desc()).limit(limit)
    if content is not None:
        query = query.where(versions.c.content == content)
    if before is not None:
        query = query.where(versions.c.number < before)
    return _stream(connection, query)


def pinned_chain(
    connection: Connection, node_id: int, selector: Selector, *, configs: bool = False
) -> list[VersionRow]:
    """Return the pinned chain of the selected version, root to leaf: one query at any depth."""
    return _read(connection, _select_chain(_kind_of(selector), configs), node_id=node_id, selector=selector)


def pinned_chain_at(connection: Connection, path: str, selector: Selector) -> dict[int, tuple[VersionRow, Files]]:
    """Return the pinned chain of the selected version at a path, root to leaf, by key, each version with its files.

    It is empty if the selector selects none, or if there is no such node.
    """
    chain: dict[int, tuple[VersionRow, Files]] = {}
    for row in connection.execute(_select_chain_at(_kind_of(selector)), {"path": path, "selector": selector}):
        key, file = row[0], row[_WIDTH:]
        if key not in chain:
            chain[key] = VersionRow._make(row[:_WIDTH]), []
        if file[0] is not None:
            chain[key][1].append(FileDigest(*file))
    return chain


def versions_at_alias(connection: Connection, node_ids: list[int], alias: str | None) -> list[VersionRow]:
    """Return the version at `alias` of each node that has it set; None means the head."""
    if alias is None:
        # Start from the nodes, not from the versions: one node may have 30,000 versions (435 ms).
        return _read(connection, _BARE.where(nodes.c.id.in_(node_ids), versions.c.number == head_of(nodes.c.id)))
    named = (aliases.c.node_id.in_(node_ids)) & (aliases.c.name == alias)
    return _read(connection, _BARE.join(aliases, aliases.c.version_id == versions.c.id).where(named))


def list_dependents(
    connection: Connection, pin_id: int | None, base_id: int, *, after: int | None, limit: int
) -> Iterator[MeasuredVersion]:
    """Yield the versions trained on a version, or directly on the base (pin_id None), in the order of publishing."""
    column, key = (versions.c.base_id, base_id) if pin_id is None else (versions.c.pin_id, pin_id)
    # Select the ids first, by a range instead of column = key, so that only the index on both columns has the order:
    # otherwise PostgreSQL reads all 10,000 dependents for a page of 3, or walks the primary key.
    here = (tuple_(column, versions.c.id) > (key, after or 0)) & (column <= key)
    ids = select(versions.c.id).where(here).order_by(column, versions.c.id).limit(limit)
    shown = (ids.where(versions.c.pin_id.is_(None)) if pin_id is None else ids).subquery("shown")
    return _stream(connection, _MEASURED.join(shown, shown.c.id == versions.c.id).order_by(versions.c.id))


def list_holders(
    connection: Connection, sha256: str, *, quarantined: bool, after: int | None, limit: int
) -> Iterator[MeasuredVersion]:
    """Yield the versions with a file of these bytes, or only the quarantined ones, in the order of publishing."""
    if quarantined:
        key: ColumnElement[int] = versions.c.id
        ids = select(key).where(versions.c.quarantined_at.is_not(None), holds_bytes(sha256))
    else:
        key = version_files.c.version_id
        ids = select(key.label("id")).where(version_files.c.sha256 == sha256)
    shown = ids.where(key > (after or 0)).order_by(key).limit(limit).subquery("shown")
    return _stream(connection, _MEASURED.join(shown, shown.c.id == versions.c.id).order_by(versions.c.id))


def count_dependents(connection: Connection, version_id: int) -> int:
    """Count the versions that were trained directly on a version."""
    return connection.scalar(select(func.count()).where(versions.c.pin_id == version_id)) or 0


def count_versions(connection: Connection, node_id: int) -> int:
    """Count the versions at a node."""
    return connection.scalar(select(func.count()).where(versions.c.node_id == node_id)) or 0


def quarantined_above(connection: Connection, version_ids: list[int]) -> list[VersionRow]:
    """Return the quarantined versions in the pinned chains of versions."""
    return _read(connection, _QUARANTINED, version_ids=version_ids)


def mark_version(
    connection: Connection, version_id: int, mark: Literal["withdrawn", "quarantined"], reason: str | None
) -> None:
    """Mark a version with a reason, or remove the mark if the reason is None."""
    at = None if reason is None else now()
    marked = update(versions).where(versions.c.id == version_id)
    connection.execute(marked.values({f"{mark}_reason": reason, f"{mark}_at": at}))


def documents_of(connection: Connection, version_id: int) -> dict[str, str]:
    """Return the documents of a version by name."""
    return connection.scalar(_DOCUMENTS, {"version_id": version_id}) or {}


def files_of(connection: Connection, version_ids: list[int]) -> dict[int, list[FileDigest]]:
    """Return the files of each version, by name."""
    files: dict[int, list[FileDigest]] = {version_id: [] for version_id in version_ids}
    for row in connection.execute(_FILES, {"version_ids": version_ids}):
        files[row.version_id].append(FileDigest(row.name, row.size, row.sha256))
    return files


def _read(connection: Connection, query: Select[Any], **parameters: Any) -> list[VersionRow]:
    return [VersionRow._make(row) for row in connection.execute(query, parameters)]


def _stream(connection: Connection, query: Select[Any]) -> Iterator[MeasuredVersion]:
    """Yield rows as the database sends them, so that a page that is full has not read the others."""
    options = {"stream_results": True, "max_row_buffer": _BUFFER}
    with connection.execute(query, execution_options=options) as result:
        for row in result:
            yield MeasuredVersion(length=row[_WIDTH], row=VersionRow._make(row[:_WIDTH]))


def _kind_of(selector: Selector) -> str:
    if selector is None:
        return "head"
    if isinstance(selector, int):
        return "number"
    return "digest" if is_digest(selector) else "alias"
