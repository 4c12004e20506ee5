"""The bodies of requests, for the wire only; an unknown field is refused, so a misspelt one is not ignored."""

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

from pydantic import ConfigDict, with_config

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import Level
from loratree_registry.core.records import Submission

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def body(record: type[T]) -> type[T]:
    """Make a class the body of a request: a frozen dataclass whose JSON has no field but its own.

    It is no pydantic model, which would check a client's arguments before the registry can refuse them by name.
    """
    return with_config(ConfigDict(extra="forbid"))(dataclass(frozen=True, slots=True, kw_only=True)(record))


@body
class NewBase:
    """A base to record: its name, its manifest, and its source in words."""

    name: str
    manifest: BaseManifest
    source: str | None = None


@body
class Source:
    """Where a base came from, in words; null removes it."""

    source: str | None


@body
class NewNode:
    """A grouping to create; without a level, it takes the level below its parent's."""

    path: str
    level: Level | None = None


@body
class Files:
    """Files by name, size in bytes and digest."""

    files: list[FileDigest]


@body
class NewUpload:
    """A file to send: its digest and its size in bytes."""

    sha256: str
    size: int


@body
class NewVersion(Submission):
    """A version to publish; its files must be uploaded already."""


@body
class Reason:
    """The reason why a version is withdrawn or quarantined, in one line."""

    reason: str


@body
class Keep:
    """The number of a node's newest versions to keep; a dry run only lists the versions that would be deleted."""

    keep: int
    dry_run: bool = False


@body
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
