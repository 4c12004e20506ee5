"""The bodies of requests, for the wire only; an unknown field is refused, so a misspelt one is not ignored."""

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
    """A base to record: its name, its manifest, and its source in words."""

    name: str
    manifest: BaseManifest
    source: str | None = None


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class NewNode:
    """A grouping to create; without a level, it takes the level below its parent's."""

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
    """A version to publish; its files must be uploaded already."""


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """The reason why a version is withdrawn or quarantined, in one line."""

    reason: str


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """The number of a node's newest versions to keep; a dry run only lists the versions that would be deleted."""

    keep: int
    dry_run: bool = False


@with_config(_EXACT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A move of an alias: to the version `version`, if it names `expected` now (null: the alias is not set)."""

    version: int
    expected: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Bytes that the registry has stored and verified."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """The health of the server, which answers and reaches its database, and its release."""

    status: str
    version: str
