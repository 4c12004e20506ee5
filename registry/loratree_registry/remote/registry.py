"""The Registry over HTTP."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, BinaryIO

from typing_extensions import override

from loratree_registry.blobs.sending import send
from loratree_registry.blobs.verified import check_announced
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.documents import Document
from loratree_registry.core.manifest import BaseManifest, check_manifest
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
from loratree_registry.core.registry import PAGE, Registry
from loratree_registry.core.uploads import ClientUploads, Part, Upload
from loratree_registry.errors import Invalid, Unavailable
from loratree_registry.remote.http import ANSWER_S, LONG_S, STALL_S, WORK_S, HttpClient, work_s
from loratree_registry.wire.bodies import Files, Keep, Move, NewBase, NewNode, NewUpload, Reason, Source, Stored
from loratree_registry.wire.query import written


class RemoteRegistry(Registry):
    """A Registry behind `loratree serve` at `url`; it is thread-safe.

    Its records equal the embedded registry's, and a problem document becomes the same error with the same sentence; a
    sentence about a failure of the server's own names the request, too, which the server's log tells more of.
    Every method raises Unavailable if the server cannot be reached, is no loratree server, or does not answer within
    `answer_s` seconds, or takes no byte for `stall_s` seconds.
    """

    def __init__(self, url: str, *, answer_s: float = ANSWER_S, stall_s: float = STALL_S) -> None:
        self._http = HttpClient(url, answer_s=answer_s, stall_s=stall_s)

    @override
    def add_base(self, name: str, manifest: BaseManifest, *, source: str | None = None) -> Base:
        new = NewBase(name=name, manifest=manifest, source=source)
        return self._http.send(Base, "POST", "bases", record=new, seconds=WORK_S)

    @override
    def bases(self, *, after: str | None = None, limit: int = PAGE) -> Page[Base]:
        return self._http.get(Page[Base], "bases", after=after, limit=limit)

    @override
    def base(self, name: str) -> Base:
        return self._http.get(Base, "bases", name)

    @override
    def base_manifest(self, name: str) -> BaseManifest:
        manifest = self._http.get(BaseManifest, "manifests", name)
        try:
            check_manifest(manifest).digest  # noqa: B018 - raises ValueError if it has none
        except (Invalid, ValueError) as error:
            raise Unavailable(f"the server's manifest of the base {name} cannot be one ({error}): check it") from error
        return manifest

    @override
    def set_source(self, name: str, source: str | None) -> Base:
        return self._http.send(Base, "PUT", "sources", name, record=Source(source=source))

    @override
    def remove_base(self, name: str) -> None:
        self._http.delete("bases", name)

    @override
    def missing_files(self, name: str, files: list[FileDigest]) -> list[FileDigest]:
        return self._http.send(list[FileDigest], "POST", "missing", name, record=Files(files=files))

    @override
    def store_base(self, name: str, files: list[FileDigest]) -> Base:
        seconds = work_s(sum(file.size for file in files))
        return self._http.send(Base, "PUT", "base-files", name, record=Files(files=files), seconds=seconds)

    @override
    def base_files(self, name: str) -> list[FileDigest]:
        return self._http.get(list[FileDigest], "base-files", name)

    @override
    def damaged_files(self, ref: str) -> list[FileDigest]:
        return self._http.get(list[FileDigest], "damaged", ref, seconds=LONG_S)

    @override
    def create_node(self, path: str, *, level: Level | None = None) -> Node:
        return self._http.send(Node, "POST", "nodes", record=NewNode(path=path, level=level))

    @override
    def node(self, path: str) -> Node:
        return self._http.get(Node, "nodes", path)

    @override
    def remove_node(self, path: str) -> None:
        self._http.delete("nodes", path)

    @override
    def children(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        return self._http.get(Page[Node], "children", path, after=after, limit=limit)

    @override
    def descendants(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        return self._http.get(Page[Node], "descendants", path, after=after, limit=limit)

    @override
    def count(self, path: str) -> Count:
        return self._http.get(Count, "count", path)

    @override
    def versions(
        self, path: str, *, content: str | None = None, after: str | None = None, limit: int = PAGE
    ) -> Page[Version]:
        return self._http.get(Page[Version], "versions", path, content=content, after=after, limit=limit)

    @override
    def version(self, ref: str) -> Version:
        return self._http.get(Version, "version", ref)

    @override
    def resolve(
        self,
        ref: str,
        *,
        follow: str | None = None,
        weights: Mapping[str, float] | None = None,
        strict: bool = False,
    ) -> Resolution:
        asked = "true" if strict else None
        return self._http.get(Resolution, "resolve", ref, follow=follow, weight=written(weights), strict=asked)

    @override
    def lineage(self, ref: str) -> Lineage:
        return self._http.get(Lineage, "lineage", ref)

    @override
    def ancestry(self, ref: str) -> list[Version]:
        return self._http.get(list[Version], "ancestry", ref)

    @override
    def dependents(self, ref: str, *, after: str | None = None, limit: int = PAGE) -> Page[Version]:
        return self._http.get(Page[Version], "dependents", ref, after=after, limit=limit)

    @override
    def holders(
        self, sha256: str, *, quarantined: bool = False, after: str | None = None, limit: int = PAGE
    ) -> Page[Version]:
        chosen = "true" if quarantined else None
        return self._http.get(Page[Version], "holders", sha256=sha256, quarantined=chosen, after=after, limit=limit)

    @override
    def upload(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        check_announced(sha256, size)
        send(RemoteUploads(self._http), stream, sha256=sha256, size=size)

    @override
    def publish(self, path: str, submission: Submission) -> Published:
        seconds = work_s(sum(file.size for file in submission.files))
        return self._http.send(Published, "POST", "versions", path, record=submission, seconds=seconds)

    @override
    def withdraw(self, ref: str, *, reason: str) -> Version:
        return self._http.send(Version, "POST", "withdrawals", ref, record=Reason(reason=reason))

    @override
    def reinstate(self, ref: str) -> Version:
        return self._http.send(Version, "DELETE", "withdrawals", ref, record=None)

    @override
    def quarantine(self, ref: str, *, reason: str) -> Version:
        return self._http.send(Version, "POST", "quarantines", ref, record=Reason(reason=reason))

    @override
    def lift_quarantine(self, ref: str) -> Version:
        return self._http.send(Version, "DELETE", "quarantines", ref, record=None)

    @override
    def delete(self, ref: str, *, reason: str) -> Tombstone:
        return self._http.send(Tombstone, "DELETE", "version", ref, record=None, reason=reason)

    @override
    def tombstones(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Tombstone]:
        return self._http.get(Page[Tombstone], "tombstones", path, after=after, limit=limit)

    @override
    def crowded(self, path: str, *, keep: int, after: str | None = None, limit: int = PAGE) -> Page[Retained]:
        return self._http.get(Page[Retained], "retentions", path, keep=keep, after=after, limit=limit)

    @override
    def retain(self, path: str, *, keep: int, dry_run: bool = False) -> Retained:
        asked = Keep(keep=keep, dry_run=dry_run)
        return self._http.send(Retained, "POST", "retentions", path, record=asked, seconds=LONG_S)

    @override
    def set_alias(self, path: str, alias: str, *, version: int, expected: int | None) -> Alias:
        move = Move(version=version, expected=expected)
        return self._http.send(Alias, "PUT", "aliases", f"{path}@{alias}", record=move)

    @override
    def delete_alias(self, path: str, alias: str, *, expected: int) -> None:
        self._http.delete("aliases", f"{path}@{alias}", expected=expected)

    @override
    def aliases(self, path: str) -> list[Alias]:
        return self._http.get(list[Alias], "aliases", path)

    @override
    def events(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Event]:
        return self._http.get(Page[Event], "events", path, after=after, limit=limit)

    @override
    def documents(self, ref: str) -> list[Document]:
        return self._http.get(list[Document], "documents", ref)

    @override
    def open_file(self, ref: str, name: str, *, start: int = 0) -> AbstractContextManager[BinaryIO]:
        return self._http.open("files", ref, start=start, name=name)

    @override
    def local_file(self, ref: str, name: str) -> Path | None:
        """Return None: the bytes are on the server."""
        return None

    @override
    def close(self) -> None:
        self._http.close()


class RemoteUploads(ClientUploads):
    """Uploads to a server over HTTP."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    @override
    def begin(self, sha256: str, size: int) -> Upload:
        return self._http.send(Upload, "POST", "uploads", record=NewUpload(sha256=sha256, size=size))

    @override
    def find(self, id: str) -> Upload:
        return self._http.get(Upload, "uploads", id)

    @override
    def part(self, id: str, number: int) -> Part:
        return self._http.get(Part, "uploads", f"{id}/parts/{number}")

    @override
    def put(self, id: str, part: Part, content: IO[bytes]) -> None:
        self._http.put_part(part, content)

    @override
    def complete(self, upload: Upload) -> None:
        path = f"{upload.id}/complete"
        self._http.send(Stored, "POST", "uploads", path, record=None, seconds=work_s(upload.size))

    @override
    def give_up(self, id: str) -> None:
        self._http.delete("uploads", id)
