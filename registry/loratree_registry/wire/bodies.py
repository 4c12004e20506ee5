"""What requests hold and only the wire needs; unknown fields are refused, so that a misspelt one is not lost."""

from dataclasses import dataclass

from pydantic import ConfigDict, with_config

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import Level
from loratree_registry.core.records import Submission

_EXACT = ConfigDict(extra="forbid")


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class NewBase:
    """A base to record: its name, every tensor of it, and where it came from, in words."""

    name: str
    manifest: BaseManifest
    source: str | None = None


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class NewNode:
    """A grouping to create; without a level, the next one down from its parent's."""

    path: str
    level: Level | None = None


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Files by name, size in bytes and digest."""

    files: list[FileDigest]


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class NewUpload:
    """A file to send: its digest and its size in bytes."""

    sha256: str
    size: int


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion(Submission):
    """A version to publish; its files are uploaded already."""


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a version is withdrawn or quarantined, in a line."""

    reason: str


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """How many of a node's newest versions to keep; a dry run only tells what would be deleted."""

    keep: int
    dry_run: bool = False


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Where to move an alias, and where it must be now: a version's number, or null for not set."""

    version: int
    expected: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Bytes that the registry holds and has verified."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """That the server answers and reaches its database, and its release."""

    status: str
    version: str
