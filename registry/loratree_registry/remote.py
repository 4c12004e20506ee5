"""The Registry over HTTP."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import BinaryIO

from loratree_registry.api.bodies import Move, NewBase, NewNode, NewUpload, Stored, Upload
from loratree_registry.api.weights import written
from loratree_registry.blobs.verified import check_announced, verified
from loratree_registry.manifest import BaseManifest
from loratree_registry.paths import Level
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
from loratree_registry.wire import ANSWER_S, WORK_S, Wire


class RemoteRegistry:
    """A Registry behind `loratree serve` at `url`; for many threads at once.

    Its records equal the embedded registry's, and a problem document becomes the same error with the same sentence.
    Every method raises Unavailable where the server cannot be reached, is not loratree's, or is silent for `answer_s`
    seconds.
    """

    def __init__(self, url: str, *, answer_s: float = ANSWER_S) -> None:
        self._wire = Wire(url, answer_s=answer_s)

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

    def resolve(self, ref: str, *, follow: str | None = None, weights: Mapping[str, float] | None = None) -> Resolution:
        """See Registry.resolve."""
        return self._wire.get(Resolution, "resolve", ref, follow=follow, weight=written(weights))

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
        upload = self._wire.send(Upload, "POST", "uploads", record=NewUpload(sha256=sha256, size=size))
        self._wire.put_bytes("uploads", f"{upload.id}/content", verified(stream, sha256, size), size)
        self._wire.send(Stored, "POST", "uploads", f"{upload.id}/complete", record=None, seconds=WORK_S)

    def publish(self, path: str, submission: Submission) -> Published:
        """See Registry.publish."""
        return self._wire.send(Published, "POST", "versions", path, record=submission, seconds=WORK_S)

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

    def open_file(self, ref: str, name: str) -> AbstractContextManager[BinaryIO]:
        """See Registry.open_file."""
        return self._wire.open("files", ref, name=name)

    def close(self) -> None:
        """See Registry.close."""
        self._wire.close()
