"""The rows that the queries read, with the database keys that the public records leave out.

The rows of nodes and versions are tuples, as a resolve makes many of them: a dataclass takes ten times as long.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.paths import Level
from loratree_registry.core.records import (
    AdapterSummary,
    Base,
    BaseRef,
    Mark,
    NodeMark,
    Pin,
    PinSource,
    Tombstone,
    Version,
)
from loratree_registry.core.times import rfc3339


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRow:
    """A base without its manifest."""

    id: int
    name: str
    digest: str
    architecture: str | None
    parameters: int
    vocabulary_size: int | None
    source: str | None
    created_at: datetime
    stored: bool

    def record(self) -> Base:
        """Return the public record of the base."""
        return Base(
            name=self.name,
            digest=self.digest,
            architecture=self.architecture,
            parameters=self.parameters,
            vocabulary_size=self.vocabulary_size,
            source=self.source,
            stored=self.stored,
            created_at=rfc3339(self.created_at),
        )


class NodeRow(NamedTuple):
    """A node, its base and its head's number."""

    id: int
    base_id: int
    base: str
    base_digest: str
    path: str
    level: Level
    head: int | None
    created_at: datetime

    def base_ref(self) -> BaseRef:
        """Return the base of the node's tree."""
        return BaseRef(name=self.base, digest=self.base_digest)


class HeadRow(NamedTuple):
    """What a listing of nodes tells of a node's head: its marks, and what tells its kinds and its pin.

    `config` is the head's config; of a long one, only the fields that tell its kinds, each as true or as some names.
    A node without a head has no ranks and no pin.
    """

    marks: list[NodeMark]
    config: dict[str, Any]
    ranks: list[int]
    rules: dict[str, int]
    pin: Pin | None


class VersionRow(NamedTuple):
    """A version with its node, its pin, and the present heads of both its own node and the pin's node."""

    id: int
    node_id: int
    path: str
    level: Level
    base: str
    base_digest: str
    number: int
    digest: str
    content: str
    config: dict[str, Any] | None  # None where the query leaves it out: it may hold a MiB
    summary: dict[str, Any]
    size: int
    note: str | None
    created_at: datetime
    pin_path: str | None
    pin_number: int | None
    pin_digest: str | None
    pin_found: PinSource
    pin_forced: bool
    withdrawn_at: datetime | None
    withdrawn_reason: str | None
    quarantined_at: datetime | None
    quarantined_reason: str | None
    head: int | None
    pin_head: int | None

    @property
    def stale(self) -> bool:
        """True if the pin is no longer the head of its node."""
        return self.pin_number != self.pin_head

    @property
    def ref(self) -> str:
        """The ref of the version, PATH@NUMBER."""
        return f"{self.path}@{self.number}"

    @property
    def pin_ref(self) -> str | None:
        """The ref of the pin, PATH@NUMBER, or None for the base."""
        return None if self.pin_path is None else f"{self.pin_path}@{self.pin_number}"

    def pin(self) -> Pin:
        """Return the pin: the version or the base that this version was trained on."""
        return Pin(path=self.pin_path, version=self.pin_number, digest=self.pin_digest, found=self.found)

    @property
    def found(self) -> PinSource:
        """How publish found the pin."""
        return "forced" if self.pin_forced else self.pin_found

    def adapter(self) -> AdapterSummary:
        """Return the summary of the adapter."""
        return AdapterSummary(**self.summary)

    def record(self, files: list[FileDigest]) -> Version:
        """Return the public record of the version."""
        assert self.config is not None
        return Version(
            path=self.path,
            level=self.level,
            number=self.number,
            digest=self.digest,
            content=self.content,
            base=self.base,
            base_digest=self.base_digest,
            pin=self.pin(),
            summary=self.adapter(),
            config=self.config,
            files=files,
            size=self.size,
            note=self.note,
            created_at=rfc3339(self.created_at),
            withdrawn=self.withdrawn(),
            quarantined=self.quarantined(),
        )

    def withdrawn(self) -> Mark | None:
        """Return when and why the version was withdrawn, or None."""
        return _to_mark(self.withdrawn_reason, self.withdrawn_at)

    def quarantined(self) -> Mark | None:
        """Return when and why the version was quarantined, or None."""
        return _to_mark(self.quarantined_reason, self.quarantined_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class TombstoneRow:
    """A tombstone of a deleted version, with the path of its node."""

    path: str
    number: int
    digest: str
    content: str
    created_at: datetime
    quarantined_reason: str | None
    reason: str
    deleted_at: datetime

    def record(self) -> Tombstone:
        """Return the public record of the tombstone."""
        return Tombstone(
            path=self.path,
            number=self.number,
            digest=self.digest,
            content=self.content,
            created_at=rfc3339(self.created_at),
            quarantined=self.quarantined_reason,
            reason=self.reason,
            deleted_at=rfc3339(self.deleted_at),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SameContent:
    """A version with a given content, or the tombstone of a quarantined version with it."""

    number: int
    digest: str
    quarantined_reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Barred:
    """A quarantined version, PATH@NUMBER, whose bytes no other version may be published with, and the reason."""

    ref: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasRow:
    """An alias and the number of the version that it names."""

    node_id: int
    name: str
    number: int
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A blob: the digest and the size of its bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """Blobs that nothing refers to and that the grace still protects; `first` and `last` are when they were used."""

    blobs: int
    bytes: int
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """An event and the path of its node."""

    id: int
    path: str
    kind: str
    detail: dict[str, Any]
    created_at: datetime


def _to_mark(reason: str | None, at: datetime | None) -> Mark | None:
    return None if reason is None or at is None else Mark(reason=reason, at=rfc3339(at))
