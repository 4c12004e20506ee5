"""Queries of nodes."""

import json
import re
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    RowMapping,
    Select,
    Text,
    bindparam,
    case,
    cast,
    exists,
    func,
    select,
)

from loratree_registry.core.kinds import TELLING
from loratree_registry.core.paths import ancestors_of, descendant_range
from loratree_registry.core.records import NodeMark, Pin, PinSource
from loratree_registry.database.queries.shared import head_of, insert_new
from loratree_registry.database.rows import HeadRow, NodeRow
from loratree_registry.database.tables import bases, nodes, tombstones, versions

_LONG: Final = 8 * 1024  # characters of a config
_NAMES_LENGTH: Final = 16 * 1024  # characters of a list of names that are read to tell a kind
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"')  # a string of JSON

_COLUMNS: dict[str, ColumnElement[Any]] = {
    "base": bases.c.name,
    "base_digest": bases.c.digest,
    "head": head_of(nodes.c.id),
}
_NODE = select(
    *((_COLUMNS[name] if name in _COLUMNS else nodes.c[name]).label(name) for name in NodeRow._fields)
).join_from(nodes, bases)

_below = (nodes.c.path > bindparam("first"), nodes.c.path < bindparam("end"))  # two bounds, for the index
_limit = bindparam("limit", type_=Integer)
_ON_PATH = _NODE.where(nodes.c.path.in_(bindparam("paths", expanding=True))).order_by(nodes.c.path)
_CHILDREN = (
    _NODE.where(nodes.c.parent_id == bindparam("node_id"), nodes.c.path > bindparam("after"))
    .order_by(nodes.c.path)
    .limit(_limit)
)
_DESCENDANTS = _NODE.where(*_below).order_by(nodes.c.path).limit(_limit)
_COUNTED = select(func.count()).select_from(select(nodes.c.path).where(*_below).limit(_limit).subquery())

# With EXISTS or LIMIT 1, PostgreSQL reads all nodes for a page if one node has 100,000 children: 20 to 800 ms. The
# lowest path of the children comes from the index on (parent_id, path): below 1 ms.
_child = nodes.alias("child")
_first_child = select(func.min(_child.c.path)).where(_child.c.parent_id == nodes.c.id).scalar_subquery()
_PARENTS = select(nodes.c.id).where(nodes.c.id.in_(bindparam("node_ids", expanding=True)), _first_child.is_not(None))

_heads, _pins, _pinned = versions.alias("heads"), versions.alias("pins"), nodes.alias("pinned")
_newest = select(func.max(versions.c.number)).where(versions.c.node_id == nodes.c.id).scalar_subquery()
_buried = exists().where(tombstones.c.node_id == nodes.c.id)
_MARKS: dict[NodeMark, ColumnElement[bool]] = {
    "stale": _pins.c.number != func.coalesce(head_of(_pins.c.node_id), 0),
    "quarantined": _heads.c.quarantined_at.is_not(None),
    "withdrawn": head_of(nodes.c.id).is_(None) & _newest.is_not(None),
    "deleted": head_of(nodes.c.id).is_(None) & _newest.is_(None) & _buried,
}
_NAMES = "target_parameters"
_PRESENT = tuple(field for field in TELLING if field != _NAMES)
# A config may have a MiB. Of a long one, the database returns only which fields it has, and the first names of
# parameters; to look for fields takes it longer than to return the few hundred bytes that most configs have.
_text = cast(_heads.c.config, Text)
_is_long = func.length(_text) > _LONG
_HEADS = (
    select(
        nodes.c.id,
        cast(_heads.c.summary, Text).label("summary"),
        _heads.c.pin_found,
        _heads.c.pin_forced,
        _pinned.c.path.label("pin_path"),
        _pins.c.number.label("pin_number"),
        _pins.c.digest.label("pin_digest"),
        case((~_is_long, _text)).label("config"),
        case((_is_long, func.substr(_heads.c.config[_NAMES].as_string(), 1, _NAMES_LENGTH))).label(_NAMES),
        *(case((_is_long, _heads.c.config[field].as_string().is_not(None))).label(field) for field in _PRESENT),
        *(condition.label(mark) for mark, condition in _MARKS.items()),
    )
    .join_from(nodes, _heads, (_heads.c.node_id == nodes.c.id) & (_heads.c.number == head_of(nodes.c.id)), isouter=True)
    .outerjoin(_pins, _heads.c.pin_id == _pins.c.id)
    .outerjoin(_pinned, _pins.c.node_id == _pinned.c.id)
    .where(nodes.c.id.in_(bindparam("node_ids", expanding=True)))
)

_LOCK = select(nodes.c.last_number).where(nodes.c.id == bindparam("node_id")).with_for_update(key_share=True)


def insert_node(connection: Connection, **values: Any) -> int | None:
    """Insert a node and return its key, or None if its path is taken."""
    key: int | None = insert_new(connection, nodes, values)
    return key


def nodes_on_path(connection: Connection, path: str) -> list[NodeRow]:
    """Return the existing nodes from the base to `path`, the base first."""
    return _read(connection, _ON_PATH, paths=[*ancestors_of(path), path])


def list_children(connection: Connection, node_id: int, *, after: str | None, limit: int) -> list[NodeRow]:
    """Return the nodes directly below a node, by path."""
    return _read(connection, _CHILDREN, node_id=node_id, after=after or "", limit=limit)


def list_descendants(connection: Connection, path: str, *, after: str | None, limit: int) -> list[NodeRow]:
    """Return the nodes below `path`, by path."""
    first, end = descendant_range(path)
    return _read(connection, _DESCENDANTS, first=max(first, after or first), end=end, limit=limit)


def count_descendants(connection: Connection, path: str, *, limit: int) -> int:
    """Count the nodes below `path`, up to `limit`."""
    first, end = descendant_range(path)
    return connection.scalar(_COUNTED, {"first": first, "end": end, "limit": limit}) or 0


def nodes_with_children(connection: Connection, node_ids: list[int]) -> set[int]:
    """Return the keys among `node_ids` of the nodes that have children."""
    return set(connection.scalars(_PARENTS, {"node_ids": node_ids}))


def heads_of(connection: Connection, node_ids: list[int]) -> dict[int, HeadRow]:
    """Return what is told of the nodes' heads, by key; without one, `withdrawn` or `deleted` at most."""
    rows = connection.execute(_HEADS, {"node_ids": node_ids}).mappings() if node_ids else ()
    return {row["id"]: _to_head(row) for row in rows}


@lru_cache(maxsize=256)
def _parse(text: str | None) -> dict[str, Any]:
    """Parse an object of JSON, once for the many nodes that are alike in it; {} for None."""
    parsed: dict[str, Any] = {} if text is None else json.loads(text)
    return parsed


def _to_head(row: RowMapping) -> HeadRow:
    marks, summary = [mark for mark in _MARKS if row[mark]], _parse(row["summary"])
    config: dict[str, Any] = {field: True for field in _PRESENT if row[field]}
    if row["config"] is not None:
        config = _parse(row["config"])
    elif row[_NAMES] is not None:
        config[_NAMES] = _QUOTED.findall(row[_NAMES])
    found: PinSource | None = "forced" if row["pin_forced"] else row["pin_found"]  # None without a head
    pin = None
    if found is not None:
        pin = Pin(path=row["pin_path"], version=row["pin_number"], digest=row["pin_digest"], found=found)
    return HeadRow(marks, config, summary.get("ranks", []), summary.get("rules", {}), pin)


def lock_node(connection: Connection, node_id: int) -> int:
    """Lock a node's row until the transaction ends, and return the last version number that the node gave out.

    On SQLite, a writer has locked the whole database already.
    """
    number: int = connection.execute(_LOCK, {"node_id": node_id}).scalar_one()
    return number


def _read(connection: Connection, query: Select[Any], **parameters: Any) -> list[NodeRow]:
    return [NodeRow._make(row) for row in connection.execute(query, parameters)]
