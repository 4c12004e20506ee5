"""Records in a registry's requests and answers; the embedded and the remote registry use the same ones.

They are plain dataclasses, so that reading them needs no framework; FastAPI and pydantic derive the JSON schema from
them. The order of the fields is the order in the JSON. Times are UTC, RFC 3339.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Generic, Literal, TypeVar

from loratree_registry.core.chain import Chain, Step
from loratree_registry.core.digests import FileDigest, digest_problems
from loratree_registry.core.kinds import Kind
from loratree_registry.core.paths import Level

T = TypeVar("T")

PinSource = Literal["lockfile", "explicit", "assumed", "forced"]
NodeMark = Literal["stale", "quarantined", "withdrawn", "deleted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """One page of a listing; `next` is the `after` that gives the next page, or null on the last page."""

    items: list[T]
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """A base model: the root of one tree. `source` says in words where the model came from; nothing opens it.

    `stored` is true if the registry also holds the base's weights.
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
class Pin:
    """The version that another was trained on, or the base (all three null), and how publish found it.

    `found` is `lockfile` (a verified loratree.json beside base_model_name_or_path), `explicit` (given by --parent, or
    the adapter's own config names the base), `assumed` (nothing named it, so it is the nearest ancestor's head) or
    `forced` (given by --parent and --force-parent, against what the adapter says).
    """

    path: str | None
    version: int | None
    digest: str | None
    found: PinSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A place in the tree. `head` is its head version, null if it has none; `aliases` maps names to versions.

    `marks` holds `stale` if the head's pin is no longer the head of its own node, `quarantined` if the head is, and
    `withdrawn` if all versions are, so that there is no head. It holds `deleted` if there were versions and none is
    left. `kinds` and `ranks` say what the head is made of, and `pin` what it was trained on; without a head, these are
    empty and null.
    """

    path: str
    level: Level
    head: int | None
    has_children: bool
    aliases: dict[str, int]
    created_at: str
    marks: list[NodeMark] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    pin: Pin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """The number of nodes below `path`; if `more` is true, the count stopped early and there are more."""

    path: str
    descendants: int
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSummary:
    """A summary of an adapter: its distinct ranks, scales and dtypes, and how many modules and parameters it has.

    `unties` is true if the adapter changes names that the base ties in different ways: in the composition, these names
    are no longer one tensor. `trained_tied` says whether the tied names were one tensor when the adapter was trained.
    It is null if that makes no difference: then the adapter means the same over ancestors of both kinds.
    """

    ranks: list[int]
    scales: list[float]
    modules: int
    parameters: int
    dtypes: list[str]
    rules: dict[str, int]
    unties: bool = False
    trained_tied: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """The reason why a version was withdrawn or quarantined, and the time."""

    reason: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One immutable adapter at a node. `size` is the total size of its files in bytes.

    A withdrawn version is never the head, but it still resolves by number, digest or pin. A quarantined version stops
    every chain that contains it.
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
        """Return one clause for each part that does not match this version's own digests."""
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
    """The record of a deleted version. If `quarantined`, a reason, is set, its content cannot be published again."""

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
    """The result of retention at a node: how many versions it kept, and the numbers of the deleted versions.

    A dry run lists the versions that it would delete. `bytes` is the size of their files, shared files included.
    """

    path: str
    kept: int
    deleted: list[int]
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One version of a resolved chain, and its pin.

    `head` is the node's head now, null if all its versions are withdrawn. `stale` is true if the pinned version is no
    longer its node's head. `follow` is null if the chain follows pins, `alias` if the followed alias gave this version,
    and `pin` if the alias is not set at this node, so that the pin gave this version.
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
    """The chain that a ref resolves to, root to leaf, and the digest that names the composition."""

    ref: str
    base: BaseRef
    chain: list[Link]
    stale: bool
    composition: str

    def to_chain(self) -> Chain:
        """Return the chain alone, as digests and lockfiles use it."""
        steps = tuple(Step(link.path, link.version, link.digest, link.weight) for link in self.chain)
        return Chain(self.base.name, self.base.digest, steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A lineage edge: `child` was trained on `parent`, null for the base.

    `stale` is true if the parent is no longer its node's head. `withdrawn` and `quarantined` are the child's marks.
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
    """The lineage of a version: its edges, leaf to base. Versions are written PATH@NUMBER."""

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
    """Something that happened at a node. `kind` is one of:

    base-added, base-stored, node-created, version-published, version-imported, alias-set, alias-deleted,
    version-withdrawn, version-reinstated, version-quarantined, quarantine-lifted, version-deleted.
    """

    id: int
    path: str
    kind: str
    detail: dict[str, Any]
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request to publish: the adapter's config as PEFT wrote it, its uploaded files, and its parent.

    `parent`, a ref or `base`, is what the adapter was trained on. It is null if `found` is `assumed`: then the registry
    pins the nearest ancestor's head in the same transaction. `level` defaults to the next level down. `documents` are
    texts by name, such as README.md (core/documents.py says which); no digest covers them.
    """

    config: dict[str, Any]
    files: list[FileDigest]
    parent: str | None
    found: PinSource
    level: Level | None = None
    note: str | None = None
    documents: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The answer to a submission; `created` is false if the node already held the same version."""

    version: Version
    created: bool
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def already(cls, version: Version) -> "Published":
        """Return the answer for a node that already holds the same version, with a warning if it was withdrawn."""
        name, mark = f"{version.path}@{version.number}", version.withdrawn
        warning = f"{name} holds the same and was withdrawn ({mark.reason}): " if mark else ""
        undo = f"take that back by `loratree withdraw {name} --undo`, or publish another adapter"
        return cls(version=version, created=False, warnings=[warning + undo] if warning else [])


ADAPTER_CONFIG: Final = "adapter_config.json"

ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
