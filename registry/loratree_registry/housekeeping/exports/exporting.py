"""Export of a subtree or a whole registry, with the versions and bases it was trained on, to a folder or a tar file."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version as release
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from loratree_registry.blobs.counted import counted
from loratree_registry.blobs.hashing import Hashed
from loratree_registry.catalog.bases import find_base
from loratree_registry.catalog.files import open_stored
from loratree_registry.catalog.nodes import find_node
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.paths import base_of, parse_ref
from loratree_registry.core.progress import Counter, Progress, silent
from loratree_registry.core.records import Base
from loratree_registry.core.times import now
from loratree_registry.database import queries
from loratree_registry.database.engine import reading
from loratree_registry.embedded.removed import telling_removed
from loratree_registry.embedded.storage import Storage
from loratree_registry.errors import Corrupt, Invalid
from loratree_registry.housekeeping.exports.format import (
    FILES,
    SCHEMA,
    BlobLine,
    ExportHeader,
    FileLine,
    read_lines,
    written,
)
from loratree_registry.housekeeping.exports.line_rows import (
    alias_line,
    base_line,
    event_line,
    node_line,
    tombstone_line,
    version_line,
)
from loratree_registry.housekeeping.exports.reading import lines_name
from loratree_registry.housekeeping.exports.writing import Destination, open_destination


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The contents of an export: the number of records of each kind, and the total size of its blobs in bytes."""

    path: str | None
    counts: dict[str, int]
    bytes: int


def _say_none(_bases: list[Base]) -> None:
    """Say nothing."""


def export(
    storage: Storage,
    path: str | None,
    out: Path,
    *,
    progress: Progress = silent,
    on_bases: Callable[[list[Base]], object] = _say_none,
) -> Exported:
    """Write a subtree, or the whole registry if `path` is None, to the new folder or .tar file `out`.

    All rows come from one transaction; the bytes are hashed while they are copied. At the end, `on_bases` gets the
    bases in the export; the weights of those that are stored are in it. Raises NotFound, Invalid, Conflict,
    Unavailable, also if a collection removed bytes that it still had to copy, and Corrupt if the blob store holds other
    bytes than the database says.
    """
    if path is not None and "@" in path:
        raise Invalid(
            f"{path} names one version, but an export holds every version: give a path without a selector, such as "
            f"{parse_ref(path).path}"
        )
    with open_destination(out) as destination:
        with reading(storage.engine) as connection:
            if path is not None:
                find_node(connection, path)
            files, counts = [], {}
            for name in FILES:
                counter = Counter(progress, f"writing {name}", 0, name)
                file, counts[name] = _write_lines(destination, name, _LINES[name](connection, path), counter)
                files.append(file)
            bases = _bases_of(connection, path, counts["bases"])
        size = _copy_blobs(storage, destination, progress)
        header = ExportHeader(
            schema=SCHEMA, loratree=release("loratree"), path=path, created_at=now(), files=files, counts=counts
        )
        destination.seal(written(header))
    on_bases(bases)
    return Exported(path=path, counts=counts, bytes=size)


def _bases_of(connection: Connection, path: str | None, count: int) -> list[Base]:
    if path is not None:
        return [find_base(connection, base_of(path)).record()]
    return [row.record() for row in queries.bases.list_bases(connection, after=None, limit=count)]


def _write_lines(
    destination: Destination, name: str, records: Iterable[object], counter: Counter
) -> tuple[FileLine, int]:
    path, count = destination.folder / lines_name(name), 0
    with path.open("wb") as stream:
        for count, record in enumerate(records, 1):  # noqa: B007 - the last value is the count
            stream.write(written(record))
            counter.add()
    with path.open("rb") as stream:
        hashed = Hashed(stream)
        hashed.drain()
    return FileLine(name=path.name, size=hashed.count, sha256=hashed.digest), count


def _blob_lines(connection: Connection, path: str | None) -> Iterable[BlobLine]:
    for row, state in queries.exporting.stream_blobs(connection, path):
        if state != "stored":
            raise Corrupt(f"{row.sha256} is needed, but recorded as {state}, expected stored: run `loratree verify`")
        yield BlobLine(sha256=row.sha256, size=row.size)


_LINES: Final[dict[str, Callable[[Connection, str | None], Iterable[Any]]]] = {
    "bases": lambda *scope: itertools.starmap(base_line, queries.exporting.stream_bases(*scope)),
    "nodes": lambda *scope: map(node_line, queries.exporting.stream_nodes(*scope)),
    "versions": lambda *scope: itertools.starmap(version_line, queries.exporting.stream_versions(*scope)),
    "tombstones": lambda *scope: map(tombstone_line, queries.exporting.stream_tombstones(*scope)),
    "aliases": lambda *scope: map(alias_line, queries.exporting.stream_aliases(*scope)),
    "events": lambda *scope: map(event_line, queries.exporting.stream_events(*scope)),
    "blobs": _blob_lines,
}


def _copy_blobs(storage: Storage, destination: Destination, progress: Progress) -> int:
    """Copy the blobs that the file of blobs lists, and return their total size in bytes."""
    with (destination.folder / lines_name("blobs")).open("rb") as stream:
        size = sum(blob.size for blob in read_lines(stream, BlobLine, lines_name("blobs")))
        counter = Counter(progress, "copying the stored files", size)
        stream.seek(0)
        for blob in read_lines(stream, BlobLine, lines_name("blobs")):
            file = FileDigest(blob.sha256, blob.size, blob.sha256)
            with telling_removed(storage.engine, file), open_stored(storage.blobs, file) as stored:
                try:
                    destination.put(blob.sha256, blob.size, counted(stored, counter.add))
                except Invalid as error:
                    raise Corrupt(
                        f"the blob store holds other bytes as {blob.sha256}: `loratree verify` lists what uses them"
                    ) from error
    return size
