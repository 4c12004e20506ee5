"""The records that a registry answers with and is asked with: the same in this process and over HTTP.

Plain dataclasses, so that reading them needs no framework; FastAPI and pydantic take their JSON schema from the same
definitions. Field order is the order of the JSON. Times are UTC, RFC 3339.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

from loratree_registry.core.chain import Chain, Step
from loratree_registry.core.digests import FileDigest, digest_problems
from loratree_registry.core.paths import Level

T = TypeVar("T")

PinSource = Literal["lockfile", "explicit", "assumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One page of a listing; `next` is the `after` that gives the page behind it, or null at the end."""

    items: list[T]
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model: the root of one tree. `source` is where it came from, in words; nothing opens it.

    `stored` tells whether the registry holds its weights too.
    """

    name: str
    digest: str
    architecture: str | None
    parameters: int
    vocabulary_size: int | None
    source: str | None
    stored: bool
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A place in the tree. `head` is its highest version, null for a grouping; `aliases` maps names to versions."""

    path: str
    level: Level
    head: int | None
    has_children: bool
    aliases: dict[str, int]
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many nodes lie below `path`; with `more`, at least one beyond those counted."""

    path: str
    descendants: int
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What a version was trained on: a version above it, or the base (all three null), and how that was found.

    `found` is `lockfile` (a verified loratree.json beside base_model_name_or_path), `explicit` (said by --parent, or
    the adapter's own config names the base) or `assumed` (nothing said it: the nearest ancestor's head).
    """

    path: str | None
    version: int | None
    digest: str | None
    found: PinSource


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSummary:
    """What an adapter holds, without its tensors: the distinct ranks and scales, and how many of what."""

    ranks: list[int]
    scales: list[float]
    modules: int
    parameters: int
    dtypes: list[str]
    rules: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Why a version was withdrawn or quarantined, and when."""

    reason: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One immutable adapter at a node. `size` is the bytes of its files together.

    A version that is `withdrawn` is no head and still resolves by number, digest or pin; one that is `quarantined`
    stops every chain through it.
    """

    path: str
    level: Level
    number: int
    digest: str
    content: str
    base: str
    base_digest: str
    pin: Pin
    summary: AdapterSummary
    config: dict[str, Any]
    files: list[FileDigest]
    size: int
    note: str | None
    created_at: str
    withdrawn: Mark | None
    quarantined: Mark | None

    def problems(self) -> list[str]:
        """What of it is not as its own digests say, a clause each; none where all is well."""
        return digest_problems(
            f"{self.path}@{self.number}",
            digest=self.digest,
            content=self.content,
            base_digest=self.base_digest,
            pin_digest=self.pin.digest,
            config=self.config,
            files=self.files,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """What is left of a deleted version. With `quarantined`, its reason, the same content is never published again."""

    path: str
    number: int
    digest: str
    content: str
    created_at: str
    quarantined: str | None
    reason: str
    deleted_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retained:
    """What retention left at a node: how many versions it kept, and the numbers of those that it deleted.

    On a dry run, of those that it would delete. `bytes` are their files' together, other versions' too perhaps.
    """

    path: str
    kept: int
    deleted: list[int]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One version of a resolved chain, and the edge to what it was trained on.

    `head` is the node's head now, null where all its versions are withdrawn. `stale` tells that the pinned version is
    no longer its node's head. `follow` is null where the chain follows pins, `alias` where this version came from the
    followed alias, `pin` where the alias is not set here and the pin was taken instead.
    """

    path: str
    level: Level
    version: int
    digest: str
    weight: float
    ranks: list[int]
    scales: list[float]
    pin: Pin
    head: int | None
    stale: bool
    withdrawn: Mark | None
    follow: Literal["alias", "pin"] | None
    files: list[FileDigest]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRef:
    """A base by name and digest."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What a ref resolves to: the chain, root to leaf, and the digest that names the composition."""

    ref: str
    base: BaseRef
    chain: list[Link]
    stale: bool
    composition: str

    def to_chain(self) -> Chain:
        """The chain alone, as digests and lockfiles use it."""
        steps = tuple(Step(link.path, link.version, link.digest, link.weight) for link in self.chain)
        return Chain(self.base.name, self.base.digest, steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A lineage edge: `child` was trained on `parent`, null for the base; `stale` if the parent is not its head now.

    `withdrawn` and `quarantined` are the child's marks.
    """

    child: str
    child_digest: str
    parent: str | None
    parent_digest: str | None
    found: PinSource
    stale: bool
    withdrawn: Mark | None
    quarantined: Mark | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a version comes from: its edges, leaf to base. Versions are written PATH@NUMBER."""

    ref: str
    base: BaseRef
    edges: list[Edge]
    stale: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A movable name of a version at a node."""

    path: str
    name: str
    version: int
    updated_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened at a node.

    base-added, node-created, version-published, alias-set, alias-deleted, version-withdrawn, version-reinstated,
    version-quarantined, quarantine-lifted, version-deleted.
    """

    id: int
    path: str
    kind: str
    detail: dict[str, Any]
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request to publish: the adapter's config as PEFT wrote it, its uploaded files, and what it was trained on.

    `parent` is a ref, or `base`; with `found` = `assumed` it is null and the registry takes the nearest ancestor's
    head in the same transaction. `level` is needed only where the default, the next level down, is not meant.
    """

    config: dict[str, Any]
    files: list[FileDigest]
    parent: str | None
    found: PinSource
    level: Level | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The answer to a submission; `created` is false where the node already held the same version."""

    version: Version
    created: bool
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def already(cls, version: Version) -> "Published":
        """The answer where the node holds the same version, which may have been withdrawn."""
        name, mark = f"{version.path}@{version.number}", version.withdrawn
        warning = f"{name} holds the same and was withdrawn ({mark.reason}): " if mark else ""
        undo = f"take that back by `loratree withdraw {name} --undo`, or publish another"
        return cls(version=version, created=False, warnings=[warning + undo] if warning else [])


ADAPTER_CONFIG: Final = "adapter_config.json"

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
