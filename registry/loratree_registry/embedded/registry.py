"""The Registry over a database and a blob store in this process; transactions begin and end here."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from sqlalchemy import Engine
from typing_extensions import override

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.store import PART, BlobStore, DirectStore
from loratree_registry.blobs.verified import check_announced, has_intact, skip
from loratree_registry.catalog import (
    aliases,
    base_weights,
    bases,
    deleting,
    events,
    files,
    lineage,
    marks,
    nodes,
    removing,
    resolving,
    versions,
)
from loratree_registry.catalog.inspection import Inspection, Inspections
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.documents import Document
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import Level, Ref, base_of, parse_ref
from loratree_registry.core.records import (
    Alias,
    Base,
    Count,
    Event,
    Lineage,
    Node,
    Page,
    Published,
    Resolution,
    Retained,
    Submission,
    Tombstone,
    Version,
)
from loratree_registry.core.registry import PAGE, Registry
from loratree_registry.database import queries
from loratree_registry.database.changes import changes_of
from loratree_registry.database.engine import asking, freeing, reading, writing
from loratree_registry.embedded.bases import add_base
from loratree_registry.embedded.direct_uploads import DirectUploads
from loratree_registry.embedded.removed import telling_removed
from loratree_registry.embedded.retention import retain
from loratree_registry.embedded.storage import open_if_begun, open_prepared
from loratree_registry.errors import Corrupt
from loratree_registry.settings import Settings
from loratree_registry.tensor_files.header import Header

if TYPE_CHECKING:
    from loratree_registry.catalog.examining import Examiner

_MANIFESTS: Final = 8  # parsed manifests in memory, up to tens of megabytes each


def open_embedded(settings: Settings, *, begin: bool = True) -> "EmbeddedRegistry":
    """Open the registry that `settings` name: create HOME and migrate SQLite. Raises Unavailable, Invalid.

    Without `begin`, a HOME without a database counts as an empty registry and stays as it is; add no base then.
    """
    storage = open_prepared(settings) if begin else open_if_begun(settings)
    return EmbeddedRegistry(storage.engine, storage.blobs, direct=settings.direct)


class EmbeddedRegistry(Registry):
    """A Registry over a SQLAlchemy engine, at this release's schema, and a blob store; it is thread-safe."""

    def __init__(self, engine: Engine, blobs: BlobStore, *, direct: bool = True) -> None:
        """`direct` allows clients to write to the store and read from it directly, if the store can do that."""
        self._engine, self._blobs = engine, blobs
        self.changes = changes_of(engine)
        self._inspections = Inspections()
        self._known_base = lru_cache(_MANIFESTS)(self._read_base)  # to publish: a base's tensors never change
        self.direct = (
            DirectUploads(engine, blobs, self._inspections.keeping)
            if direct and isinstance(blobs, DirectStore)
            else None
        )

    @override
    def add_base(self, name: str, manifest: BaseManifest, *, source: str | None = None) -> Base:
        return add_base(self._engine, name, manifest, source=source)

    @override
    def bases(self, *, after: str | None = None, limit: int = PAGE) -> Page[Base]:
        with reading(self._engine) as connection:
            return bases.list_bases(connection, after=after, limit=limit)

    @override
    def base(self, name: str) -> Base:
        with reading(self._engine) as connection:
            return bases.find_base(connection, name).record()

    @override
    def base_manifest(self, name: str) -> BaseManifest:
        with reading(self._engine) as connection:
            return bases.base_manifest(connection, name)

    @override
    def set_source(self, name: str, source: str | None) -> Base:
        with writing(self._engine) as connection:
            return bases.set_source(connection, name, source)

    @override
    def remove_base(self, name: str) -> None:
        with freeing(self._engine) as connection:
            removing.remove_base(connection, name)
        self._known_base.cache_clear()

    @override
    def missing_files(self, name: str, files: list[FileDigest]) -> list[FileDigest]:
        digests = base_weights.digests_of(files)
        with writing(self._engine) as connection:
            held = base_weights.hold(connection, name, digests)
        unsent = {file for file in files if held.get(file.sha256) != file.size}
        return [file for file in files if file in unsent or self._blobs.size(file.sha256) != file.size]

    @override
    def store_base(self, name: str, files: list[FileDigest]) -> Base:
        with reading(self._engine) as connection:
            manifest = bases.base_manifest(connection, name)
            new = base_weights.check_storable(connection, name, files)
        if new:
            with self._telling_missing(files):
                base_weights.check_weights(self._blobs, files, manifest)
        with writing(self._engine) as connection:
            return base_weights.record(connection, name, files)

    @override
    def base_files(self, name: str) -> list[FileDigest]:
        with reading(self._engine) as connection:
            return base_weights.list_files(connection, name)

    @override
    def damaged_files(self, ref: str) -> list[FileDigest]:
        list_files = base_weights.list_files if _is_base(ref) else files.list_files
        with reading(self._engine) as connection:
            listed = list_files(connection, ref)
        damaged = [file for file in listed if not has_intact(self._blobs, file.sha256, file.size)]
        if not damaged:
            return []
        with reading(self._engine) as connection:  # raises Gone if they were deleted, and collected, meanwhile
            still = list_files(connection, ref)
        return [file for file in damaged if file in still]

    @override
    def create_node(self, path: str, *, level: Level | None = None) -> Node:
        with writing(self._engine) as connection:
            return nodes.create_node(connection, path, level=level)

    @override
    def node(self, path: str) -> Node:
        with reading(self._engine) as connection:
            return nodes.node(connection, path)

    @override
    def remove_node(self, path: str) -> None:
        with freeing(self._engine) as connection:
            removing.remove_node(connection, path)

    @override
    def children(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        with reading(self._engine) as connection:
            return nodes.children(connection, path, after=after, limit=limit)

    @override
    def descendants(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        with reading(self._engine) as connection:
            return nodes.descendants(connection, path, after=after, limit=limit)

    @override
    def count(self, path: str) -> Count:
        with reading(self._engine) as connection:
            return nodes.count(connection, path)

    @override
    def versions(
        self, path: str, *, content: str | None = None, after: str | None = None, limit: int = PAGE
    ) -> Page[Version]:
        with reading(self._engine) as connection:
            return versions.versions(connection, path, content=content, after=after, limit=limit)

    @override
    def version(self, ref: str) -> Version:
        with reading(self._engine) as connection:
            return versions.version(connection, ref)

    @override
    def resolve(
        self,
        ref: str,
        *,
        follow: str | None = None,
        weights: Mapping[str, float] | None = None,
        strict: bool = False,
    ) -> Resolution:
        if follow is None:
            with asking(self._engine) as connection:
                if found := resolving.resolve_pinned(connection, ref, weights=weights, strict=strict):
                    return found
        with reading(self._engine) as connection:
            return resolving.resolve(connection, ref, follow=follow, weights=weights, strict=strict)

    @override
    def lineage(self, ref: str) -> Lineage:
        with reading(self._engine) as connection:
            return lineage.lineage(connection, ref)

    @override
    def ancestry(self, ref: str) -> list[Version]:
        with reading(self._engine) as connection:
            return lineage.ancestry(connection, ref)

    @override
    def dependents(self, ref: str, *, after: str | None = None, limit: int = PAGE) -> Page[Version]:
        with reading(self._engine) as connection:
            return lineage.dependents(connection, ref, after=after, limit=limit)

    @override
    def holders(
        self, sha256: str, *, quarantined: bool = False, after: str | None = None, limit: int = PAGE
    ) -> Page[Version]:
        with reading(self._engine) as connection:
            return versions.holders(connection, sha256, quarantined=quarantined, after=after, limit=limit)

    @override
    def upload(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        check_announced(sha256, size)
        if self.direct and size > PART:
            from loratree_registry.blobs.sending import send  # which a listing does without

            send(self.direct, stream, sha256=sha256, size=size)  # a killed upload resumes with the missing parts
            return
        with writing(self._engine) as connection:
            lease = queries.blobs.lease_blob(connection, sha256, size)
        # The bytes come before the row that records them: the database is never ahead of the store.
        with self._inspections.keeping(sha256, size) as inspect_bytes:
            self._blobs.put(sha256, size, stream, read_back=inspect_bytes)
        with writing(self._engine) as connection:
            files.record_stored(connection, sha256, size, lease)

    @override
    def publish(self, path: str, submission: Submission) -> Published:
        from loratree_registry.catalog import examining, publishing  # slow to import, and only publishing needs them

        examining.check_submission(path, submission)
        manifest, digest, examiner = self._known_base(base_of(path))
        inspection = self._inspect(submission.files, partial(examiner.check_shapes, submission))
        untied = False
        if manifest.ties():
            with reading(self._engine) as connection:
                untied = publishing.is_parent_untied(connection, path, submission)
        examined = examiner.examine(inspection, path, submission, untied=untied)
        try:
            with writing(self._engine) as connection:
                return publishing.publish(connection, path, submission, examined, base_digest=digest)
        except publishing.BaseReplaced:
            self._known_base.cache_clear()
            raise

    def _read_base(self, name: str) -> "tuple[BaseManifest, str, Examiner]":
        from loratree_registry.catalog.examining import Examiner

        manifest = self.base_manifest(name)
        return manifest, manifest.digest, Examiner(manifest)

    def _inspect(self, submitted: list[FileDigest], check: Callable[[Header], None]) -> Inspection:
        if cached := self._inspections.kept(submitted[0]):
            return cached  # publishing.publish checks that the bytes are still stored
        with self._telling_missing(submitted):
            return self._inspections.read(self._blobs, submitted[0], check)

    @contextmanager
    def _telling_missing(self, submitted: list[FileDigest]) -> Iterator[None]:
        """Raise NotUploaded instead of Corrupt if files were not uploaded, or a collection removed them."""
        try:
            yield
        except Corrupt:
            with reading(self._engine) as connection:
                files.check_uploaded(connection, submitted)
            raise

    @override
    def withdraw(self, ref: str, *, reason: str) -> Version:
        with writing(self._engine) as connection:
            return marks.withdraw(connection, ref, reason=reason)

    @override
    def reinstate(self, ref: str) -> Version:
        with writing(self._engine) as connection:
            return marks.reinstate(connection, ref)

    @override
    def quarantine(self, ref: str, *, reason: str) -> Version:
        with writing(self._engine) as connection:
            return marks.quarantine(connection, ref, reason=reason)

    @override
    def lift_quarantine(self, ref: str) -> Version:
        with writing(self._engine) as connection:
            return marks.lift_quarantine(connection, ref)

    @override
    def delete(self, ref: str, *, reason: str) -> Tombstone:
        with freeing(self._engine) as connection:
            return deleting.delete(connection, ref, reason=reason)

    @override
    def tombstones(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Tombstone]:
        with reading(self._engine) as connection:
            return deleting.tombstones(connection, path, after=after, limit=limit)

    @override
    def crowded(self, path: str, *, keep: int, after: str | None = None, limit: int = PAGE) -> Page[Retained]:
        with reading(self._engine) as connection:
            return deleting.crowded(connection, path, keep=keep, after=after, limit=limit)

    @override
    def retain(self, path: str, *, keep: int, dry_run: bool = False) -> Retained:
        return retain(self._engine, path, keep=keep, dry_run=dry_run)

    @override
    def set_alias(self, path: str, alias: str, *, version: int, expected: int | None) -> Alias:
        with writing(self._engine) as connection:
            return aliases.set_alias(connection, path, alias, version=version, expected=expected)

    @override
    def delete_alias(self, path: str, alias: str, *, expected: int) -> None:
        with writing(self._engine) as connection:
            aliases.delete_alias(connection, path, alias, expected=expected)

    @override
    def aliases(self, path: str) -> list[Alias]:
        with reading(self._engine) as connection:
            return aliases.list_aliases(connection, path)

    @override
    def events(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Event]:
        with reading(self._engine) as connection:
            return events.events(connection, path, after=after, limit=limit)

    @override
    def documents(self, ref: str) -> list[Document]:
        with reading(self._engine) as connection:
            return files.list_documents(connection, ref)

    def file(self, ref: str, name: str) -> FileDigest:
        """Return the digest of the file that open_file opens. Raises NotFound."""
        with reading(self._engine) as connection:
            if _is_base(ref):
                return base_weights.find_file(connection, ref, name)
            return files.find_file(connection, ref, name)

    def check_held(self, file: FileDigest) -> None:
        """Check without reading the bytes that a file can be opened. Raises as `open_stored` does."""
        with telling_removed(self._engine, file):
            files.check_held(self._blobs, file)

    @contextmanager
    def open_stored(self, file: FileDigest, *, start: int = 0) -> Iterator[BinaryIO]:
        """Open a file from byte `start`.

        Raises Corrupt if the blob store has lost the file or a part of it, Unavailable if a collection removed it.
        """
        with telling_removed(self._engine, file), files.open_stored(self._blobs, file) as stream:
            skip(stream, start)
            yield stream

    @override
    def open_file(self, ref: str, name: str, *, start: int = 0) -> AbstractContextManager[BinaryIO]:
        return self.open_stored(self.file(ref, name), start=start)

    @override
    def local_file(self, ref: str, name: str) -> Path | None:
        if not isinstance(self._blobs, LocalBlobStore):
            return None
        file = self.file(ref, name)
        self.check_held(file)
        return self._blobs.path(file.sha256)

    @override
    def close(self) -> None:
        if self.changes is not None:
            self.changes.close()
        self._engine.dispose()
        self._blobs.close()


def _is_base(ref: str) -> bool:
    """Return whether `ref` is a base's name alone, and so stands for the base's weights."""
    return parse_ref(ref) == Ref(base_of(ref))
