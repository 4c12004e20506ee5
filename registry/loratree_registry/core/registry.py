"""The Registry protocol: what the command line and the composer speak, in this process or over HTTP."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

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

PAGE = 100
MAX_PAGE = 1000
MAX_COUNT = 20_000  # nodes that are counted one by one: 9 ms in PostgreSQL, whatever the tree holds


class Registry(Protocol):
    """A catalog of bases, nodes and versions over a blob store. Every method raises LoratreeError alone.

    A `ref` is `PATH` or `PATH@SELECTOR`. Listings page by key: pass a page's `next` as `after`.
    """

    def add_base(self, name: str, manifest: BaseManifest, *, source: str | None = None) -> Base:
        """Records a base and the root of its tree. The same name and digest again is the same base; else Conflict."""
        ...

    def bases(self, *, after: str | None = None, limit: int = PAGE) -> Page[Base]:
        """The bases, by name."""
        ...

    def base(self, name: str) -> Base:
        """One base. Raises NotFound."""
        ...

    def base_manifest(self, name: str) -> BaseManifest:
        """Every tensor of a base. Raises NotFound."""
        ...

    def missing_files(self, name: str, files: list[FileDigest]) -> list[FileDigest]:
        """Those of `files` that have to be uploaded before they can be stored as the weights of the base `name`."""
        ...

    def store_base(self, name: str, files: list[FileDigest]) -> Base:
        """Makes uploaded files the weights of the base `name`: its checkpoint as save_pretrained writes one.

        Each tensor is read and is the base's, or all of it is refused with Invalid. The same files again change
        nothing; others raise Conflict, as weights are stored once. Raises NotFound, Corrupt.
        """
        ...

    def base_files(self, name: str) -> list[FileDigest]:
        """The files of a base's weights, by name; none where they are not stored. Raises NotFound."""
        ...

    def damaged_files(self, ref: str) -> list[FileDigest]:
        """Those files of the version or base that `ref` names that are missing or damaged where they are stored.

        All of them are read and hashed there. Raises NotFound.
        """
        ...

    def create_node(self, path: str, *, level: Level | None = None) -> Node:
        """Creates a grouping and its missing ancestors; an existing node of that level is answered as it is."""
        ...

    def node(self, path: str) -> Node:
        """One node. Raises NotFound."""
        ...

    def children(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        """The nodes directly below `path`, by path."""
        ...

    def descendants(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        """Every node below `path`, in byte order of their paths."""
        ...

    def count(self, path: str) -> Count:
        """How many nodes lie below `path`: exactly to MAX_COUNT, then that there are more. Raises NotFound."""
        ...

    def versions(
        self, path: str, *, content: str | None = None, after: str | None = None, limit: int = PAGE
    ) -> Page[Version]:
        """The versions at `path`, newest first; `content` keeps those of one content digest."""
        ...

    def version(self, ref: str) -> Version:
        """The version that `ref` names. Raises NotFound."""
        ...

    def resolve(
        self,
        ref: str,
        *,
        follow: str | None = None,
        weights: Mapping[str, float] | None = None,
        strict: bool = False,
    ) -> Resolution:
        """The chain of `ref` by its pins, or with each ancestor at the alias `follow` where that is set.

        `weights` maps paths of the chain to level weights, 1 for the others: W + Σ wᵢ sᵢ BᵢAᵢ. A weight is finite; 0
        drops the level, which stays in the chain; an adapter with override or ordered parts takes 0 or 1 only.
        Raises NotFound; Gone where the version was deleted; Quarantined where a version of the chain is; Invalid, which
        names every weight that the chain does not take; with `strict` Conflict where one was withdrawn.
        """
        ...

    def lineage(self, ref: str) -> Lineage:
        """The edges from the version that `ref` names up to its base."""
        ...

    def ancestry(self, ref: str) -> list[Version]:
        """The version that `ref` names, last, and what it was trained on before it, root to leaf; none for a base."""
        ...

    def dependents(self, ref: str, *, after: str | None = None, limit: int = PAGE) -> Page[Version]:
        """The versions trained directly on the one that `ref` names, in the order of publishing."""
        ...

    def upload(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        """Stores `size` bytes under their digest, verified by reading them back; what is stored already is kept.

        Raises Invalid where the stream holds other bytes, Unavailable where the store cannot take them.
        """
        ...

    def publish(self, path: str, submission: Submission) -> Published:
        """Makes uploaded files a version at `path`, whole or not at all; missing ancestors become groupings."""
        ...

    def withdraw(self, ref: str, *, reason: str) -> Version:
        """Takes a version from the heads; it resolves by number, digest or pin, marked with the reason.

        `ref` says the number or the digest. Raises NotFound, Invalid, and Conflict while an alias names it.
        """
        ...

    def reinstate(self, ref: str) -> Version:
        """Undoes a withdrawal. Raises NotFound, Invalid."""
        ...

    def quarantine(self, ref: str, *, reason: str) -> Version:
        """Stops every chain through a version, and its content from being published there again.

        `ref` says the number or the digest. Raises NotFound, Invalid.
        """
        ...

    def lift_quarantine(self, ref: str) -> Version:
        """Ends a quarantine. Raises NotFound, Invalid."""
        ...

    def delete(self, ref: str, *, reason: str) -> Tombstone:
        """Deletes a version; its number is never used again.

        `ref` says the number or the digest. Raises NotFound, Gone where it was deleted already, Invalid, and Conflict
        while an alias names it or a version is pinned to it.
        """
        ...

    def tombstones(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Tombstone]:
        """What is left of the versions that were deleted at `path`, newest first."""
        ...

    def retain(self, path: str, *, keep: int, dry_run: bool = False) -> Retained:
        """Deletes all versions at `path` but the newest `keep`, the head, and what an alias names or a pin.

        Raises NotFound, Invalid.
        """
        ...

    def set_alias(self, path: str, alias: str, *, version: int, expected: int | None) -> Alias:
        """Moves `alias` to `version` if it is at `expected` now (None: not set); else Conflict with where it is."""
        ...

    def delete_alias(self, path: str, alias: str, *, expected: int) -> None:
        """Removes `alias` if it is at `expected` now; else Conflict."""
        ...

    def aliases(self, path: str) -> list[Alias]:
        """The aliases at `path`, by name."""
        ...

    def events(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Event]:
        """What happened at `path` and below it, newest first."""
        ...

    def open_file(self, ref: str, name: str, *, start: int = 0) -> AbstractContextManager[BinaryIO]:
        """Opens one file of a version, or of a base's stored weights where `ref` is its name, from byte `start`.

        Its bytes are as stored, so the reader checks the digest. Raises NotFound.
        """
        ...

    def local_file(self, ref: str, name: str) -> Path | None:
        """Where this machine itself stores what open_file opens, to be read alone; None where it does not."""
        ...

    def close(self) -> None:
        """Releases connections. The registry cannot be used afterwards."""
        ...
