"""The Registry over HTTP."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, BinaryIO

from loratree_registry.blobs.sending import send
from loratree_registry.blobs.verified import check_announced
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import Level
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
from loratree_registry.core.registry import PAGE
from loratree_registry.core.uploads import Part, Upload
from loratree_registry.remote.http import ANSWER_S, WORK_S, HttpClient, work_s
from loratree_registry.wire.bodies import Files, Keep, Move, NewBase, NewNode, NewUpload, Reason, Stored
from loratree_registry.wire.query import written


class RemoteRegistry:
    """A Registry behind `loratree serve` at `url`; for many threads at once.

    Its records equal the embedded registry's, and a problem document becomes the same error with the same sentence.
    Every method raises Unavailable where the server cannot be reached, is not loratree's, or is silent for `answer_s`
    seconds.
    """

    def __init__(self, url: str, *, answer_s: float = ANSWER_S) -> None:
        self._wire = HttpClient(url, answer_s=answer_s)

    def add_base(self, name: str, manifest: BaseManifest, *, source: str | None = None) -> Base:
        """See Registry.add_base."""
        new = NewBase(name=name, manifest=manifest, source=source)
        return self._wire.send(Base, "POST", "bases", record=new, seconds=WORK_S)

    def bases(self, *, after: str | None = None, limit: int = PAGE) -> Page[Base]:
        """See Registry.bases."""
        return self._wire.get(Page[Base], "bases", after=after, limit=limit)

    def base(self, name: str) -> Base:
        """See Registry.base."""
        return self._wire.get(Base, "bases", name)

    def base_manifest(self, name: str) -> BaseManifest:
        """See Registry.base_manifest."""
        return self._wire.get(BaseManifest, "manifests", name)

    def missing_files(self, name: str, files: list[FileDigest]) -> list[FileDigest]:
        """See Registry.missing_files."""
        return self._wire.send(list[FileDigest], "POST", "missing", name, record=Files(files=files))

    def store_base(self, name: str, files: list[FileDigest]) -> Base:
        """See Registry.store_base."""
        seconds = work_s(sum(file.size for file in files))
        return self._wire.send(Base, "PUT", "base-files", name, record=Files(files=files), seconds=seconds)

    def base_files(self, name: str) -> list[FileDigest]:
        """See Registry.base_files."""
        return self._wire.get(list[FileDigest], "base-files", name)

    def damaged_files(self, ref: str) -> list[FileDigest]:
        """See Registry.damaged_files."""
        return self._wire.get(list[FileDigest], "damaged", ref, seconds=WORK_S)

    def create_node(self, path: str, *, level: Level | None = None) -> Node:
        """See Registry.create_node."""
        return self._wire.send(Node, "POST", "nodes", record=NewNode(path=path, level=level))

    def node(self, path: str) -> Node:
        """See Registry.node."""
        return self._wire.get(Node, "nodes", path)

    def children(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        """See Registry.children."""
        return self._wire.get(Page[Node], "children", path, after=after, limit=limit)

    def descendants(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        """See Registry.descendants."""
        return self._wire.get(Page[Node], "descendants", path, after=after, limit=limit)

    def count(self, path: str) -> Count:
        """See Registry.count."""
        return self._wire.get(Count, "count", path)

    def versions(
        self, path: str, *, content: str | None = None, after: str | None = None, limit: int = PAGE
    ) -> Page[Version]:
        """See Registry.versions."""
        return self._wire.get(Page[Version], "versions", path, content=content, after=after, limit=limit)

    def version(self, ref: str) -> Version:
        """See Registry.version."""
        return self._wire.get(Version, "version", ref)

    def resolve(
        self,
        ref: str,
        *,
        follow: str | None = None,
        weights: Mapping[str, float] | None = None,
        strict: bool = False,
    ) -> Resolution:
        """See Registry.resolve."""
        asked = "true" if strict else None
        return self._wire.get(Resolution, "resolve", ref, follow=follow, weight=written(weights), strict=asked)

    def lineage(self, ref: str) -> Lineage:
        """See Registry.lineage."""
        return self._wire.get(Lineage, "lineage", ref)

    def ancestry(self, ref: str) -> list[Version]:
        """See Registry.ancestry."""
        return self._wire.get(list[Version], "ancestry", ref)

    def dependents(self, ref: str, *, after: str | None = None, limit: int = PAGE) -> Page[Version]:
        """See Registry.dependents."""
        return self._wire.get(Page[Version], "dependents", ref, after=after, limit=limit)

    def upload(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        """See Registry.upload."""
        check_announced(sha256, size)
        send(RemoteUploads(self._wire), stream, sha256=sha256, size=size)

    def publish(self, path: str, submission: Submission) -> Published:
        """See Registry.publish."""
        return self._wire.send(Published, "POST", "versions", path, record=submission, seconds=WORK_S)

    def withdraw(self, ref: str, *, reason: str) -> Version:
        """See Registry.withdraw."""
        return self._wire.send(Version, "POST", "withdrawals", ref, record=Reason(reason=reason))

    def reinstate(self, ref: str) -> Version:
        """See Registry.reinstate."""
        return self._wire.send(Version, "DELETE", "withdrawals", ref, record=None)

    def quarantine(self, ref: str, *, reason: str) -> Version:
        """See Registry.quarantine."""
        return self._wire.send(Version, "POST", "quarantines", ref, record=Reason(reason=reason))

    def lift_quarantine(self, ref: str) -> Version:
        """See Registry.lift_quarantine."""
        return self._wire.send(Version, "DELETE", "quarantines", ref, record=None)

    def delete(self, ref: str, *, reason: str) -> Tombstone:
        """See Registry.delete."""
        return self._wire.send(Tombstone, "DELETE", "versions", ref, record=None, reason=reason)

    def tombstones(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Tombstone]:
        """See Registry.tombstones."""
        return self._wire.get(Page[Tombstone], "tombstones", path, after=after, limit=limit)

    def retain(self, path: str, *, keep: int, dry_run: bool = False) -> Retained:
        """See Registry.retain."""
        asked = Keep(keep=keep, dry_run=dry_run)
        return self._wire.send(Retained, "POST", "retentions", path, record=asked, seconds=WORK_S)

    def set_alias(self, path: str, alias: str, *, version: int, expected: int | None) -> Alias:
        """See Registry.set_alias."""
        move = Move(version=version, expected=expected)
        return self._wire.send(Alias, "PUT", "aliases", f"{path}@{alias}", record=move)

    def delete_alias(self, path: str, alias: str, *, expected: int) -> None:
        """See Registry.delete_alias."""
        self._wire.delete("aliases", f"{path}@{alias}", expected=expected)

    def aliases(self, path: str) -> list[Alias]:
        """See Registry.aliases."""
        return self._wire.get(list[Alias], "aliases", path)

    def events(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Event]:
        """See Registry.events."""
        return self._wire.get(Page[Event], "events", path, after=after, limit=limit)

    def open_file(self, ref: str, name: str, *, start: int = 0) -> AbstractContextManager[BinaryIO]:
        """See Registry.open_file."""
        return self._wire.open("files", ref, start=start, name=name)

    def local_file(self, ref: str, name: str) -> Path | None:  # noqa: ARG002 - the protocol's
        """None: the bytes are the server's."""
        return None

    def close(self) -> None:
        """See Registry.close."""
        self._wire.close()


class RemoteUploads:
    """The Uploads behind a server."""

    def __init__(self, wire: HttpClient) -> None:
        self._wire = wire

    def begin(self, sha256: str, size: int) -> Upload:
        """See Uploads.begin."""
        return self._wire.send(Upload, "POST", "uploads", record=NewUpload(sha256=sha256, size=size))

    def find(self, id: str) -> Upload:  # noqa: A002 - the field's name
        """See Uploads.find."""
        return self._wire.get(Upload, "uploads", id)

    def part(self, id: str, number: int) -> Part:  # noqa: A002 - the field's name
        """See Uploads.part."""
        return self._wire.get(Part, "uploads", f"{id}/parts/{number}")

    def put(self, id: str, part: Part, content: IO[bytes]) -> None:  # noqa: A002, ARG002 - the URL says whose it is
        """See ClientUploads.put."""
        self._wire.put_part(part, content)

    def complete(self, upload: Upload) -> None:
        """See Uploads.complete."""
        path = f"{upload.id}/complete"
        self._wire.send(Stored, "POST", "uploads", path, record=None, seconds=work_s(upload.size))

    def give_up(self, id: str) -> None:  # noqa: A002 - the field's name
        """See Uploads.give_up."""
        self._wire.delete("uploads", id)
