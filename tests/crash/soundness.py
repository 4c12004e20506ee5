"""What must hold of a registry whatever died, and everything that can be seen of it, to compare two."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from sqlalchemy import select

from loratree_registry.core.digests import FileDigest, digest_stream, version_digest
from loratree_registry.core.records import Node, Tombstone, Version
from loratree_registry.core.registry import MAX_PAGE
from loratree_registry.database.engine import reading
from loratree_registry.database.tables import blobs
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import LoratreeError

Seen = list[Any]


def seen(registry: EmbeddedRegistry) -> Seen:
    """Every base, node, version and event, without the times and ids that two runs cannot share."""
    records: Seen = []
    for base in registry.bases(limit=MAX_PAGE).items:
        records += [base, registry.base_manifest(base.name), *registry.base_files(base.name)]
        records += reversed(registry.events(base.name, limit=MAX_PAGE).items)
        for node in _nodes(registry, base.name):
            records += [node, *registry.versions(node.path, limit=MAX_PAGE).items]
            records += registry.tombstones(node.path, limit=MAX_PAGE).items
    return [_timeless(asdict(record)) for record in records]


def violations(registry: EmbeddedRegistry, stored: list[str]) -> list[str]:
    """Every broken promise: a version or base without its bytes, a number or event too few or too many, a broken row.

    `stored` are the files or keys in its blob store.
    """
    return [*_database(registry), *_blobs(registry, stored), *_bases(registry), *_versions(registry)]


def _bases(registry: EmbeddedRegistry) -> Iterator[str]:
    for base in registry.bases(limit=MAX_PAGE).items:
        yield from _files(registry, base.name, registry.base_files(base.name))


def _versions(registry: EmbeddedRegistry) -> Iterator[str]:
    for base in registry.bases(limit=MAX_PAGE).items:
        events = registry.events(base.name, limit=MAX_PAGE).items
        kinds = ("version-published", "version-deleted")
        told = Counter((event.kind, event.path, event.detail["version"]) for event in events if event.kind in kinds)
        held: Counter[tuple[str, str, Any]] = Counter()
        for node in _nodes(registry, base.name):
            versions = registry.versions(node.path, limit=MAX_PAGE).items
            buried = registry.tombstones(node.path, limit=MAX_PAGE).items
            held.update(("version-published", node.path, one.number) for one in [*versions, *buried])
            held.update(("version-deleted", node.path, one.number) for one in buried)
            yield from _numbers(node, versions, buried)
            for version in versions:
                yield from _version(registry, version)
        if told != held:
            yield f"the versions of {base.name} are {held}, and its events tell of {told}"


def _numbers(node: Node, versions: list[Version], buried: list[Tombstone]) -> Iterator[str]:
    numbers = sorted(one.number for one in [*versions, *buried])
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"{node.path} has the versions {numbers}"
    if len({version.digest for version in versions}) != len(versions):
        yield f"{node.path} has one content under two numbers"


def _version(registry: EmbeddedRegistry, version: Version) -> Iterator[str]:
    ref = f"{version.path}@{version.number}"
    named = version_digest(
        base_digest=version.base_digest, pin_digest=version.pin.digest, config=version.config, files=version.files
    )
    if named != version.digest:
        yield f"{ref} is {version.digest}, and what it holds is {named}"
    if not version.files:
        yield f"{ref} has no file"
    yield from _files(registry, ref, version.files)


def _files(registry: EmbeddedRegistry, owner: str, files: Iterable[FileDigest]) -> Iterator[str]:
    for file in files:
        try:
            with registry.open_stored(file) as stream:  # of what is in quarantine too
                found = digest_stream(stream)
        except LoratreeError as error:
            yield f"{owner} lacks its bytes: {error}"
        else:
            if found != (file.sha256, file.size):
                yield f"{owner} has the bytes {found} for {file}"


def _blobs(registry: EmbeddedRegistry, names: list[str]) -> Iterator[str]:
    """What the database calls stored is; and bytes that it knows nothing of, nobody would ever collect."""
    with reading(registry._engine) as connection:
        states = {row.sha256: row.state for row in connection.execute(select(blobs))}
    held = {f"sha256:{name.rpartition('/')[2]}" for name in names if name.startswith("sha256/")}
    yield from (
        f"{digest} is said to be stored, and is not" for digest in states.keys() - held if states[digest] == "stored"
    )
    yield from (f"{digest} is stored, and the database knows nothing of it" for digest in held - states.keys())


def _database(registry: EmbeddedRegistry) -> Iterator[str]:
    if registry._engine.dialect.name == "sqlite":
        with reading(registry._engine) as connection:
            for pragma in ("integrity_check", "foreign_key_check"):
                for row in connection.exec_driver_sql(f"PRAGMA {pragma}"):
                    if tuple(row) != ("ok",):
                        yield f"SQLite's {pragma} says {tuple(row)}"


def _nodes(registry: EmbeddedRegistry, base: str) -> list[Node]:
    return [registry.node(base), *registry.descendants(base, limit=MAX_PAGE).items]


def _timeless(record: Any) -> Any:
    if isinstance(record, dict):
        kept = {key: value for key, value in record.items() if key not in ("id", "at") and not key.endswith("_at")}
        return {key: _timeless(value) for key, value in kept.items()}
    return [_timeless(item) for item in record] if isinstance(record, list | tuple) else record
