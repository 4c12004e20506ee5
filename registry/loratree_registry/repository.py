"""Every query, one function each, over a connection; none commits. No other module writes SQL."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, func, literal, select, tuple_, update
from sqlalchemy import delete as delete_from
from sqlalchemy import insert as insert_into

from loratree_registry.composition import FileDigest
from loratree_registry.models import aliases, bases, blobs, event_views, events, nodes, now, version_files, versions
from loratree_registry.paths import ancestors_of, descendant_range, is_digest
from loratree_registry.rows import AliasRow, BaseRow, EventRow, NodeRow, VersionRow

Selector = int | str | None

_pins, _pin_nodes = versions.alias("pins"), nodes.alias("pin_nodes")


def _head(node: Any) -> ColumnElement[int]:
    """The highest number at a node; the index on (node_id, number) ends in it."""
    counted = versions.alias()
    return select(func.max(counted.c.number)).where(counted.c.node_id == node).scalar_subquery()


_BASE = select(*(column for column in bases.c if column is not bases.c.manifest))
_NODE = select(
    nodes.c.id,
    nodes.c.base_id,
    bases.c.name.label("base"),
    bases.c.digest.label("base_digest"),
    nodes.c.path,
    nodes.c.level,
    _head(nodes.c.id).label("head"),
    nodes.c.created_at,
).join_from(nodes, bases)
_VERSION = (
    select(
        *(column for column in versions.c if column.name not in ("base_id", "pin_id")),
        nodes.c.path,
        nodes.c.level,
        bases.c.name.label("base"),
        bases.c.digest.label("base_digest"),
        _pin_nodes.c.path.label("pin_path"),
        _pins.c.number.label("pin_number"),
        _pins.c.digest.label("pin_digest"),
        _head(nodes.c.id).label("head"),
        _head(_pin_nodes.c.id).label("pin_head"),
    )
    .join_from(versions, nodes, versions.c.node_id == nodes.c.id)
    .join(bases, nodes.c.base_id == bases.c.id)
    .outerjoin(_pins, versions.c.pin_id == _pins.c.id)
    .outerjoin(_pin_nodes, _pins.c.node_id == _pin_nodes.c.id)
)
_ALIAS = select(aliases.c.node_id, aliases.c.name, versions.c.number, aliases.c.updated_at).join_from(
    aliases, versions, aliases.c.version_id == versions.c.id
)
_EVENT = (
    select(events.c.id, nodes.c.path, events.c.kind, events.c.detail, events.c.created_at)
    .join_from(event_views, events, event_views.c.event_id == events.c.id)
    .join(nodes, events.c.node_id == nodes.c.id)
)


# bases


def insert_base(connection: Connection, **values: Any) -> int | None:
    """Inserts a base; None where its name is taken."""
    key: int | None = _insert_new(connection, bases, values)
    return key


def find_base(connection: Connection, name: str) -> BaseRow | None:
    """A base by name."""
    row = connection.execute(_BASE.where(bases.c.name == name)).one_or_none()
    return None if row is None else BaseRow(**row._asdict())


def list_bases(connection: Connection, *, after: str | None, limit: int) -> list[BaseRow]:
    """Bases by name."""
    query = _BASE.order_by(bases.c.name).limit(limit)
    return [BaseRow(**row._asdict()) for row in connection.execute(_past(query, bases.c.name, after))]


def find_manifest(connection: Connection, name: str) -> dict[str, Any] | None:
    """A base's manifest, as JSON."""
    found: dict[str, Any] | None = connection.scalar(select(bases.c.manifest).where(bases.c.name == name))
    return found


# nodes


def insert_node(connection: Connection, **values: Any) -> int | None:
    """Inserts a node; None where its path is taken."""
    key: int | None = _insert_new(connection, nodes, values)
    return key


def nodes_on_path(connection: Connection, path: str) -> list[NodeRow]:
    """The nodes that exist from the base to `path`, the base first."""
    query = _NODE.where(nodes.c.path.in_([*ancestors_of(path), path])).order_by(nodes.c.path)
    return [NodeRow(**row._asdict()) for row in connection.execute(query)]


def list_children(connection: Connection, node_id: int, *, after: str | None, limit: int) -> list[NodeRow]:
    """The nodes directly below one, by path."""
    query = _NODE.where(nodes.c.parent_id == node_id).order_by(nodes.c.path).limit(limit)
    return [NodeRow(**row._asdict()) for row in connection.execute(_past(query, nodes.c.path, after))]


def list_descendants(connection: Connection, path: str, *, after: str | None, limit: int) -> list[NodeRow]:
    """Every node below `path`, by path."""
    first, end = descendant_range(path)
    query = _NODE.where(
        nodes.c.path > max(first, after or first), nodes.c.path < end
    )  # one bound a side, for the index
    return [NodeRow(**row._asdict()) for row in connection.execute(query.order_by(nodes.c.path).limit(limit))]


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


# versions


def insert_version(connection: Connection, files: Iterable[FileDigest], **values: Any) -> int:
    """Inserts a version and its files, whose blobs must be stored."""
    version_id: int = connection.execute(insert_into(versions).values(values).returning(versions.c.id)).scalar_one()
    rows = [{"version_id": version_id, "name": f.name, "size": f.size, "sha256": f.sha256} for f in files]
    connection.execute(insert_into(version_files), rows)
    return version_id


def find_version(connection: Connection, node_id: int, selector: Selector) -> VersionRow | None:
    """The version at a node that a number, an alias, a digest or None, for the head, selects."""
    row = connection.execute(_VERSION.where(_selected(node_id, selector))).one_or_none()
    return None if row is None else VersionRow(**row._asdict())


def list_versions(
    connection: Connection, node_id: int, *, content: str | None, before: int | None, limit: int
) -> list[VersionRow]:
    """The versions at a node, newest first."""
    query = _VERSION.where(versions.c.node_id == node_id).order_by(versions.c.number.desc()).limit(limit)
    if content is not None:
        query = query.where(versions.c.content == content)
    if before is not None:
        query = query.where(versions.c.number < before)
    return _versions(connection, query)


def pinned_chain(connection: Connection, node_id: int, selector: Selector) -> list[VersionRow]:
    """The selected version last, what it was trained on before it, and so on up: one query whatever the depth."""
    start = select(versions.c.id, versions.c.pin_id, literal(0).label("depth")).where(_selected(node_id, selector))
    link = start.cte("link", recursive=True)
    pinned = versions.alias("pinned")
    link = link.union_all(select(pinned.c.id, pinned.c.pin_id, link.c.depth + 1).where(pinned.c.id == link.c.pin_id))
    return _versions(connection, _VERSION.join(link, link.c.id == versions.c.id).order_by(link.c.depth.desc()))


def versions_at_alias(connection: Connection, node_ids: list[int], alias: str | None) -> list[VersionRow]:
    """At each node where `alias` is set, its version; None is the head."""
    if alias is None:
        # From the nodes, not from the versions: of those there may be 30,000 at one node (435 ms).
        return _versions(connection, _VERSION.where(nodes.c.id.in_(node_ids), versions.c.number == _head(nodes.c.id)))
    named = (aliases.c.node_id.in_(node_ids)) & (aliases.c.name == alias)
    return _versions(connection, _VERSION.join(aliases, aliases.c.version_id == versions.c.id).where(named))


def list_dependents(
    connection: Connection, pin_id: int | None, base_id: int, *, after: int | None, limit: int
) -> list[VersionRow]:
    """The versions trained on one version, or on the base itself (pin_id None), in the order of publishing."""
    column, key = (versions.c.base_id, base_id) if pin_id is None else (versions.c.pin_id, pin_id)
    # The ids first, and a range instead of column = key, so that only the index on both gives the order: else
    # PostgreSQL reads all 10,000 dependents for a page of 3, or walks the primary key.
    here = (tuple_(column, versions.c.id) > (key, after or 0)) & (column <= key)
    ids = select(versions.c.id).where(here).order_by(column, versions.c.id).limit(limit)
    shown = (ids.where(versions.c.pin_id.is_(None)) if pin_id is None else ids).subquery("shown")
    return _versions(connection, _VERSION.join(shown, shown.c.id == versions.c.id).order_by(versions.c.id))


def files_of(connection: Connection, version_ids: list[int]) -> dict[int, list[FileDigest]]:
    """The files of each version, by name."""
    query = select(version_files).where(version_files.c.version_id.in_(version_ids)).order_by(version_files.c.name)
    found: dict[int, list[FileDigest]] = {version_id: [] for version_id in version_ids}
    for row in connection.execute(query):
        found[row.version_id].append(FileDigest(row.name, row.size, row.sha256))
    return found


# aliases


def insert_alias(connection: Connection, node_id: int, name: str, version_id: int) -> bool:
    """Sets an alias that is not set; False where it is."""
    values = {"node_id": node_id, "name": name, "version_id": version_id}
    return _insert_new(connection, aliases, values) is not None


def move_alias(connection: Connection, node_id: int, name: str, version_id: int, *, expected: int) -> bool:
    """Moves an alias that is at the version numbered `expected`; False where it is not."""
    moved = update(aliases).where(_alias_at(node_id, name, expected)).values(version_id=version_id, updated_at=now())
    return connection.execute(moved).rowcount == 1


def delete_alias(connection: Connection, node_id: int, name: str, *, expected: int) -> bool:
    """Removes an alias that is at the version numbered `expected`; False where it is not."""
    return connection.execute(delete_from(aliases).where(_alias_at(node_id, name, expected))).rowcount == 1


def list_aliases(connection: Connection, node_ids: list[int]) -> list[AliasRow]:
    """The aliases of nodes, by name."""
    query = _ALIAS.where(aliases.c.node_id.in_(node_ids)).order_by(aliases.c.name)
    return [AliasRow(**row._asdict()) for row in connection.execute(query)]


# blobs and events


def insert_blob(connection: Connection, sha256: str, size: int) -> None:
    """Records bytes that are stored and verified; known ones stay as they are."""
    _insert_new(connection, blobs, {"sha256": sha256, "size": size})


def blob_sizes(connection: Connection, digests: list[str]) -> dict[str, int]:
    """The sizes of those bytes that are stored."""
    query = select(blobs.c.sha256, blobs.c.size).where(blobs.c.sha256.in_(digests))
    return {row.sha256: row.size for row in connection.execute(query)}


def insert_event(connection: Connection, path: str, kind: str, **detail: Any) -> None:
    """Writes down what happens at a node, in the transaction in which it happens, to be seen from all above it."""
    at_node = select(nodes.c.id).where(nodes.c.path == path).scalar_subquery()
    written = insert_into(events).values(node_id=at_node, kind=kind, detail=detail).returning(events.c.id)
    event_id = connection.execute(written).scalar_one()
    seen_from = select(nodes.c.id, literal(event_id)).where(nodes.c.path.in_([*ancestors_of(path), path]))
    connection.execute(insert_into(event_views).from_select(["node_id", "event_id"], seen_from))


def list_events(connection: Connection, node_id: int, *, before: int | None, limit: int) -> list[EventRow]:
    """What happened at a node and below it, newest first."""
    query = _EVENT.where(event_views.c.node_id == node_id).order_by(event_views.c.event_id.desc()).limit(limit)
    if before is not None:
        query = query.where(event_views.c.event_id < before)
    return [EventRow(**row._asdict()) for row in connection.execute(query)]


# what these share


def _insert_new(connection: Connection, table: Table, values: dict[str, Any]) -> Any:
    """Inserts a row and returns the first column of its key; None where a unique key is taken, without an error."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]  # same method, other class
    key = next(iter(table.primary_key))
    return connection.scalar(insert(table).values(values).on_conflict_do_nothing().returning(key))


def _versions(connection: Connection, query: Select[Any]) -> list[VersionRow]:
    return [VersionRow(**row._asdict()) for row in connection.execute(query)]


def _past(query: Select[Any], column: ColumnElement[str], after: str | None) -> Select[Any]:
    return query if after is None else query.where(column > after)


def _selected(node_id: int, selector: Selector) -> ColumnElement[bool]:
    at_node = versions.c.node_id == node_id
    if selector is None:
        return at_node & (versions.c.number == _head(literal(node_id)))
    if isinstance(selector, int):
        return at_node & (versions.c.number == selector)
    if is_digest(selector):
        return at_node & (versions.c.digest == selector)
    named = (aliases.c.node_id == node_id) & (aliases.c.name == selector)
    return at_node & (versions.c.id == select(aliases.c.version_id).where(named).scalar_subquery())


def _alias_at(node_id: int, name: str, number: int) -> ColumnElement[bool]:
    version = select(versions.c.id).where(versions.c.node_id == node_id, versions.c.number == number)
    return (
        (aliases.c.node_id == node_id) & (aliases.c.name == name) & (aliases.c.version_id == version.scalar_subquery())
    )
