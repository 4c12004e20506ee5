"""The Registry protocol, which the command line and the composer use, in this process or over HTTP."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.documents import Document
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
from loratree_registry.errors import Unavailable

T = TypeVar("T")
PAGE = 100
MAX_PAGE = 1000
MAX_COUNT = 20_000  # nodes that are counted exactly: 9 ms in PostgreSQL, however large the tree is


class Registry(Protocol):
    """A catalog of bases, nodes and versions over a blob store. A method raises only LoratreeError.

    A `ref` is `PATH` or `PATH@SELECTOR`. Listings page by key: pass a page's `next` as `after`.
    """

    def add_base(self, name: str, manifest: BaseManifest, *, source: str | None = None) -> Base:
        """Record a base and the root of its tree. A known name with another digest raises Conflict."""
        ...

    def bases(self, *, after: str | None = None, limit: int = PAGE) -> Page[Base]:
        """Return the bases, by name."""
        ...

    def base(self, name: str) -> Base:
        """Return one base. Raises NotFound."""
        ...

    def base_manifest(self, name: str) -> BaseManifest:
        """Return the manifest of a base: every tensor. Raises NotFound."""
        ...

    def set_source(self, name: str, source: str | None) -> Base:
        """Set where the base `name` came from, in words; None removes it. Raises NotFound, Invalid."""
        ...

    def remove_base(self, name: str) -> None:
        """Remove a base whose tree has no versions, with its tree and its stored weights.

        Raises NotFound, and Conflict if a version is left, or a deleted one was quarantined.
        """
        ...

    def missing_files(self, name: str, files: list[FileDigest]) -> list[FileDigest]:
        """Return those of `files` that must be uploaded before `store_base` can make them the base's weights."""
        ...

    def store_base(self, name: str, files: list[FileDigest]) -> Base:
        """Make uploaded files the weights of the base `name`: a checkpoint as save_pretrained writes it.

        Every tensor is read and must equal the base's; else Invalid refuses all files. The same files again change
        nothing; other files raise Conflict, because weights are stored once. Raises NotFound, Corrupt.
        """
        ...

    def base_files(self, name: str) -> list[FileDigest]:
        """Return the files of a base's weights, by name; an empty list if they are not stored. Raises NotFound."""
        ...

    def damaged_files(self, ref: str) -> list[FileDigest]:
        """Return the missing or damaged files of the version or base that `ref` names.

        The registry reads and hashes every file where it is stored. Raises NotFound.
        """
        ...

    def create_node(self, path: str, *, level: Level | None = None) -> Node:
        """Create a grouping and its missing ancestors; an existing node of that level is returned unchanged."""
        ...

    def node(self, path: str) -> Node:
        """Return one node. Raises NotFound."""
        ...

    def remove_node(self, path: str) -> None:
        """Remove a node without children, versions and tombstones. Raises NotFound, Conflict, Invalid for a base."""
        ...

    def children(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        """Return the nodes directly below `path`, by path."""
        ...

    def descendants(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Node]:
        """Return every node below `path`, in byte order of the paths."""
        ...

    def count(self, path: str) -> Count:
        """Count the nodes below `path`: exactly up to MAX_COUNT, then only that there are more. Raises NotFound."""
        ...

    def versions(
        self, path: str, *, content: str | None = None, after: str | None = None, limit: int = PAGE
    ) -> Page[Version]:
        """Return the versions at `path`, newest first; `content` selects the versions with one content digest."""
        ...

    def version(self, ref: str) -> Version:
        """Return the version that `ref` names. Raises NotFound."""
        ...

    def resolve(
        self,
        ref: str,
        *,
        follow: str | None = None,
        weights: Mapping[str, float] | None = None,
        strict: bool = False,
    ) -> Resolution:
        """Return the chain of `ref` by its pins, or with each ancestor at the alias `follow` if the alias is set there.

        `weights` maps paths of the chain to level weights, 1 for the others: W + Σ wᵢ sᵢ BᵢAᵢ. A weight is finite; 0
        drops the level, which stays in the chain; an adapter with override or ordered parts takes 0 or 1 only.
        Raises NotFound; Gone if the version was deleted; Quarantined if a version of the chain is; Invalid, which names
        every weight that the chain does not take; with `strict`, Conflict if a version of the chain was withdrawn.
        """
        ...

    def lineage(self, ref: str) -> Lineage:
        """Return the edges from the version that `ref` names up to its base."""
        ...

    def ancestry(self, ref: str) -> list[Version]:
        """Return the version that `ref` names and the versions it was trained on, root to leaf; none for a base."""
        ...

    def dependents(self, ref: str, *, after: str | None = None, limit: int = PAGE) -> Page[Version]:
        """Return the versions trained directly on the version that `ref` names, in order of publishing."""
        ...

    def holders(
        self, sha256: str, *, quarantined: bool = False, after: str | None = None, limit: int = PAGE
    ) -> Page[Version]:
        """Return the versions of every tree that hold the bytes with a digest, in order of publishing.

        `quarantined` selects those that are quarantined, while which no other node takes these bytes. Raises Invalid.
        """
        ...

    def upload(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        """Store `size` bytes under their digest, and read them back to verify them. Stored bytes are not replaced.

        Raises Invalid if the stream holds other bytes, Unavailable if the store cannot take them.
        """
        ...

    def publish(self, path: str, submission: Submission) -> Published:
        """Make uploaded files a version at `path`, in one step or not at all; create missing ancestors as groupings.

        Raises Quarantined if the pin's chain, or a version of any node with the same bytes, is quarantined.
        """
        ...

    def withdraw(self, ref: str, *, reason: str) -> Version:
        """Exclude a version from the heads; it still resolves by number, digest or pin, marked with the reason.

        `ref` gives the number or the digest. Raises NotFound, Invalid, and Conflict while an alias names the version.
        """
        ...

    def reinstate(self, ref: str) -> Version:
        """Undo a withdrawal. Raises NotFound, Invalid."""
        ...

    def quarantine(self, ref: str, *, reason: str) -> Version:
        """Refuse every chain through a version, and refuse to publish its bytes at any path.

        `ref` gives the number or the digest. Raises NotFound, Invalid.
        """
        ...

    def lift_quarantine(self, ref: str) -> Version:
        """End a quarantine. Raises NotFound, Invalid."""
        ...

    def delete(self, ref: str, *, reason: str) -> Tombstone:
        """Delete a version; its number is never used again.

        `ref` gives the number or the digest. Raises NotFound, Gone if the version was already deleted, Invalid, and
        Conflict while an alias names the version or another version is pinned to it.
        """
        ...

    def tombstones(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Tombstone]:
        """Return the tombstones of the versions that were deleted at `path`, newest first."""
        ...

    def crowded(self, path: str, *, keep: int, after: str | None = None, limit: int = PAGE) -> Page[Retained]:
        """Return the nodes at `path` and below with more than `keep` versions, and what `retain` would delete there.

        Nothing is changed, and no lock is taken. Raises NotFound, Invalid.
        """
        ...

    def retain(self, path: str, *, keep: int, dry_run: bool = False) -> Retained:
        """Delete the versions at `path` except the newest `keep`, the head, and those that an alias or a pin names.

        Raises NotFound, Invalid.
        """
        ...

    def set_alias(self, path: str, alias: str, *, version: int, expected: int | None) -> Alias:
        """Move `alias` from `expected` (None: unset) to `version`; if it is elsewhere, raise Conflict."""
        ...

    def delete_alias(self, path: str, alias: str, *, expected: int) -> None:
        """Remove `alias` if it is at `expected`; else raise Conflict."""
        ...

    def aliases(self, path: str) -> list[Alias]:
        """Return the aliases at `path`, by name."""
        ...

    def events(self, path: str, *, after: str | None = None, limit: int = PAGE) -> Page[Event]:
        """Return the events at `path` and below it, newest first."""
        ...

    def documents(self, ref: str) -> list[Document]:
        """Return the documents of the version that `ref` names, by name: its model card and other small texts.

        Raises NotFound, and Quarantined if its files cannot be downloaded either.
        """
        ...

    def open_file(self, ref: str, name: str, *, start: int = 0) -> AbstractContextManager[BinaryIO]:
        """Open one file from byte `start`: of a version, or of a base's stored weights if `ref` is the base's name.

        The bytes are as stored, so the reader must check the digest. Raises NotFound.
        """
        ...

    def local_file(self, ref: str, name: str) -> Path | None:
        """Return where this machine stores the file that open_file opens, to read only; None if it does not."""
        ...

    def close(self) -> None:
        """Close the connections. The registry cannot be used afterwards."""
        ...


def list_bases(registry: Registry) -> Iterator[Base]:
    """Yield every base of a registry, by name, page by page."""
    yield from read_pages(lambda after: registry.bases(after=after, limit=MAX_PAGE))


def read_pages(listing: Callable[[str | None], Page[T]]) -> Iterator[T]:
    """Yield the items of every page; `listing` takes the last key of the page before.

    Raises Unavailable if the list does not go on, as that of a broken server.
    """
    after: str | None = None
    while True:
        page = listing(after)
        yield from page.items
        if page.next is None:
            return
        if not page.items or page.next == after:
            raise Unavailable(f"the registry's list does not go on after {page.next[:100]!r}: check the server")
        after = page.next
