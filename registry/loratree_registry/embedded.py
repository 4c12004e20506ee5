"""The Registry over a database and a blob store in this process: the edge, where transactions open and end."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO

from sqlalchemy import Engine

from loratree_registry import (
    aliases,
    bases,
    database,
    files,
    history,
    lineage,
    nodes,
    repository,
    resolving,
    versions,
)
from loratree_registry.blobs.open import open_blobs
from loratree_registry.blobs.store import BlobStore
from loratree_registry.blobs.verified import check_announced
from loratree_registry.database import reading, writing
from loratree_registry.inspection import Inspections
from loratree_registry.manifest import BaseManifest
from loratree_registry.paths import Level, base_of
from loratree_registry.protocol import PAGE
from loratree_registry.schemas import (
    Alias,
    Base,
    Count,
    Event,
    Lineage,
    Node,
    Page,
    Published,
    Resolution,
    Submission,
    Version,
)
from loratree_registry.settings import Settings


def open_embedded(settings: Settings) -> "EmbeddedRegistry":
    """Opens the registry that `settings` name: makes HOME, migrates SQLite by itself. Raises Unavailable, Invalid."""
    settings.make_home()
    blobs = open_blobs(settings.blobs, endpoint=settings.s3_endpoint)
    engine = database.open_engine(settings.database)
    try:
        database.prepare(engine)
    except BaseException:
        engine.dispose()
        raise
    return EmbeddedRegistry(engine, blobs)


class EmbeddedRegistry:
    """A Registry over a SQLAlchemy engine, whose schema is at HEAD, and a blob store; for many threads at once."""

    def __init__(self, engine: Engine, blobs: BlobStore) -> None:
        self._engine, self._blobs = engine, blobs
        self._inspections = Inspections()

    def add_base(self, name: str, manifest: BaseManifest, *, source: str | None = None) -> Base:
        """See Registry.add_base."""
        with writing(self._engine) as connection:
            return bases.add_base(connection, name, manifest, source=source)

    def bases(self, *, after: str | None = None, limit: int = PAGE) -> Page[Base]:
        """See Registry.bases."""
        with reading(self._engine) as connection:
            return bases.list_bases(connection, after=after, limit=limit)

    def base(self, name: str) -> Base:
        """See Registry.base."""
        with reading(self._engine) as connection:
            return bases.find_base(connection, name).record()

    def base_manifest(self, name: str) -> BaseManifest:
        """See Registry.base_manifest."""
        with reading(self._engine) as connection:
            return bases.base_manifest(connection, name)

    def create_node(self, path: str, *, level: Level | None = None) -> Node:
        """See Registry.create_node."""
        with writing(self._engine) as connection:
            return nodes.create_node(connection, path, level=level)

    def node(self, path: str) -> Node:
        """See Registry.node."""
        with reading(self._engine) as connection:
            return nodes.node(connection, path)

    def children(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        """See Registry.children."""
        with reading(self._engine) as connection:
            return nodes.children(connection, path, after=after, limit=limit)

    def descendants(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        """See Registry.descendants."""
        with reading(self._engine) as connection:
            return nodes.descendants(connection, path, after=after, limit=limit)

    def count(self, path: str) -> Count:
        """See Registry.count."""
        with reading(self._engine) as connection:
            return nodes.count(connection, path)

    def versions(
        self, path: str, *, content: str | None = None, after: str | None = None, limit: int = PAGE
    ) -> Page[Version]:
        """See Registry.versions."""
        with reading(self._engine) as connection:
            return versions.versions(connection, path, content=content, after=after, limit=limit)

    def version(self, ref: str) -> Version:
        """See Registry.version."""
        with reading(self._engine) as connection:
            return versions.version(connection, ref)

    def resolve(self, ref: str, *, follow: str | None = None, weights: Mapping[str, float] | None = None) -> Resolution:
        """See Registry.resolve."""
        with reading(self._engine) as connection:
            return resolving.resolve(connection, ref, follow=follow, weights=weights)

    def lineage(self, ref: str) -> Lineage:
        """See Registry.lineage."""
        with reading(self._engine) as connection:
            return lineage.lineage(connection, ref)

    def ancestry(self, ref: str) -> list[Version]:
        """See Registry.ancestry."""
        with reading(self._engine) as connection:
            return lineage.ancestry(connection, ref)

    def dependents(self, ref: str, *, after: str | None = None, limit: int = PAGE) -> Page[Version]:
        """See Registry.dependents."""
        with reading(self._engine) as connection:
            return lineage.dependents(connection, ref, after=after, limit=limit)

    def upload(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        """See Registry.upload."""
        check_announced(sha256, size)
        with writing(self._engine) as connection:
            repository.lease_blob(connection, sha256, size)
        # The bytes before what says that they are stored: the database is never ahead of them.
        self._blobs.put(sha256, size, stream, read_back=self._inspections.keep(sha256, size))
        with writing(self._engine) as connection:
            files.record_stored(connection, sha256, size)

    def publish(self, path: str, submission: Submission) -> Published:
        """See Registry.publish."""
        from loratree_registry import publishing  # it brings the adapter format, which a listing does without

        publishing.check_submission(path, submission)
        with reading(self._engine) as connection:
            manifest = bases.base_manifest(connection, base_of(path))
            files.check_uploaded(connection, submission.files)
        inspection = self._inspections.of(self._blobs, submission.files[0])
        examined = publishing.examine(inspection, manifest, path, submission)
        with writing(self._engine) as connection:
            return publishing.publish(connection, path, submission, examined)

    def set_alias(self, path: str, alias: str, *, version: int, expected: int | None) -> Alias:
        """See Registry.set_alias."""
        with writing(self._engine) as connection:
            return aliases.set_alias(connection, path, alias, version=version, expected=expected)

    def delete_alias(self, path: str, alias: str, *, expected: int) -> None:
        """See Registry.delete_alias."""
        with writing(self._engine) as connection:
            aliases.delete_alias(connection, path, alias, expected=expected)

    def aliases(self, path: str) -> list[Alias]:
        """See Registry.aliases."""
        with reading(self._engine) as connection:
            return aliases.list_aliases(connection, path)

    def events(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Event]:
        """See Registry.events."""
        with reading(self._engine) as connection:
            return history.events(connection, path, after=after, limit=limit)

    @contextmanager
    def open_file(self, ref: str, name: str) -> Iterator[BinaryIO]:
        """See Registry.open_file."""
        with reading(self._engine) as connection:
            file = files.find_file(connection, ref, name)
        with files.open_stored(self._blobs, file) as stream:
            yield stream

    def close(self) -> None:
        """See Registry.close."""
        self._engine.dispose()
        self._blobs.close()
