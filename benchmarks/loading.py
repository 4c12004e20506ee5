"""Loading: many new nodes with their first versions at once, the rows that publishing each of them would write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.paths import Level, ancestors_of, parent_of
from loratree_registry.core.records import PinSource
from loratree_registry.database import queries
from loratree_registry.database.tables import aliases, blobs, event_views, events, nodes, version_files, versions
from loratree_registry.errors import NotFound

Rows = list[dict[str, Any]]
_TABLES = (nodes, blobs, versions, version_files, aliases, events, event_views)  # each after what it refers to


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstVersion:
    """A node's version 1: what publishing has found out about it, and its aliases. Its files' bytes are stored."""

    digest: str
    content: str
    config: dict[str, Any]
    summary: dict[str, Any]
    files: tuple[FileDigest, ...]
    found: PinSource
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedNode:
    """A node that is not there yet, and its version, which the nearest version above it is the pin of, or None."""

    path: str
    level: Level
    version: FirstVersion | None


@dataclass(frozen=True, slots=True)
class _Parent:
    """A node that others may go below: the keys from the base to it, and the version that they are trained on."""

    base_id: int
    node_ids: tuple[int, ...]
    pin_id: int | None
    pin_ref: str | None


def load(connection: Connection, grown: Sequence[LoadedNode]) -> None:
    """Inserts nodes, parents before children, with their versions, files, blobs and events; some 10,000 a call.

    What is loaded was checked by whoever made it, and nothing of it may be there already. Raises NotFound where a
    parent is missing.
    """
    places: dict[str, _Parent] = {}
    rows = _Batch(connection, grown)
    for node in grown:
        parent = parent_of(node.path) or node.path
        places[node.path] = rows.add(node, places.get(parent) or places.setdefault(parent, _find(connection, parent)))
    rows.insert(connection)


def _find(connection: Connection, path: str) -> _Parent:
    above = queries.nodes.nodes_on_path(connection, path)
    if len(above) != len(ancestors_of(path)) + 1:
        raise NotFound(f"{path} is not known, and nodes to be loaded lie below it: load or create it first")
    versioned = [node for node in above if node.head is not None]
    pin = queries.versions.find_version(connection, versioned[-1].id, None) if versioned else None
    node_ids = tuple(node.id for node in above)
    return _Parent(above[0].base_id, node_ids, pin.id if pin else None, pin.ref if pin else None)


class _Batch:
    """The rows of one call, by table."""

    def __init__(self, connection: Connection, grown: Sequence[LoadedNode]) -> None:
        versioned = [node.version for node in grown if node.version is not None]
        self._node_ids = iter(queries.many_rows.new_keys(connection, nodes, len(grown)))
        self._version_ids = iter(queries.many_rows.new_keys(connection, versions, len(versioned)))
        changes = len(grown) + sum(1 + len(version.aliases) for version in versioned)
        self._event_ids = iter(queries.many_rows.new_keys(connection, events, changes))
        sizes = {file.sha256: file.size for version in versioned for file in version.files}
        known = queries.blobs.hold_blobs(connection, list(sizes))
        self._rows: dict[Any, Rows] = {t: [] for t in _TABLES}
        self._rows[blobs] = [{"sha256": sha256, "size": size} for sha256, size in sizes.items() if sha256 not in known]

    def add(self, node: LoadedNode, parent: _Parent) -> _Parent:
        """Adds a node's rows and returns its place."""
        node_ids = (*parent.node_ids, next(self._node_ids))
        self._rows[nodes].append(
            {
                "id": node_ids[-1],
                "base_id": parent.base_id,
                "parent_id": parent.node_ids[-1],
                "path": node.path,
                "level": node.level,
                "last_number": 0 if node.version is None else 1,
            }
        )
        self._add_event(node_ids, "node-created", level=node.level)
        if node.version is None:
            return _Parent(parent.base_id, node_ids, parent.pin_id, parent.pin_ref)
        version_id = self._add_version(node.version, parent, node_ids[-1])
        self._add_event(node_ids, "version-published", version=1, digest=node.version.digest, pin=parent.pin_ref)
        for name in node.version.aliases:
            self._rows[aliases].append({"node_id": node_ids[-1], "name": name, "version_id": version_id})
            self._add_event(node_ids, "alias-set", alias=name, version=1, previous=None)
        return _Parent(parent.base_id, node_ids, version_id, f"{node.path}@1")

    def insert(self, connection: Connection) -> None:
        """Inserts all rows."""
        for table, rows in self._rows.items():
            queries.many_rows.insert_many(connection, table, rows)

    def _add_version(self, version: FirstVersion, parent: _Parent, node_id: int) -> int:
        version_id = next(self._version_ids)
        self._rows[versions].append(
            {
                "id": version_id,
                "node_id": node_id,
                "base_id": parent.base_id,
                "number": 1,
                "digest": version.digest,
                "content": version.content,
                "pin_id": parent.pin_id,
                "pin_found": version.found,
                "config": version.config,
                "summary": version.summary,
                "size": sum(file.size for file in version.files),
            }
        )
        self._rows[version_files] += [
            {"version_id": version_id, "name": file.name, "size": file.size, "sha256": file.sha256}
            for file in version.files
        ]
        return version_id

    def _add_event(self, node_ids: tuple[int, ...], kind: str, **detail: Any) -> None:
        event_id = next(self._event_ids)
        self._rows[events].append({"id": event_id, "node_id": node_ids[-1], "kind": kind, "detail": detail})
        self._rows[event_views] += [{"node_id": node_id, "event_id": event_id} for node_id in node_ids]
