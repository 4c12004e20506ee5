"""Records of an export, one JSON line each: the fields of each kind of record, and the checks of each line."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, BinaryIO, ClassVar, Final, TypeVar

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError

from loratree_registry.core.digests import FileDigest, digest_problems
from loratree_registry.core.documents import check_documents
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import MAX_NUMBER, Level, is_ancestor, is_digest, parse_alias, parse_path
from loratree_registry.core.records import ADAPTER_WEIGHTS, AdapterSummary, PinSource
from loratree_registry.core.strict_json import parse_json
from loratree_registry.core.text import check_text
from loratree_registry.core.times import in_utc
from loratree_registry.errors import Invalid

SCHEMA: Final = "loratree/export/1"
HEADER: Final = "loratree-export.json"
MAX_LINE: Final = 64 * 1024 * 1024  # the manifest of a base with 65,536 tensors has 20 MB
MAX_HEADER: Final = 1024 * 1024
AGAIN: Final = "export it again, or copy it again whole"

Record = TypeVar("Record")


def _check_digest(text: str) -> str:
    if not is_digest(text):
        raise ValueError("is not sha256: and 64 hexadecimal digits")
    return text


def _check_file_name(text: str) -> str:
    if not text or text in (".", "..") or not text.isprintable() or {"/", "\\"} & set(text):
        raise ValueError("is not a plain file name")
    return text


def _check_note(text: str) -> str:
    return check_text("text", text, limit=2000) or text


def _check_documents(documents: dict[str, str]) -> dict[str, str]:
    check_documents(documents)
    return documents


# A line without documents is what releases wrote that knew none, and what they read.
_LEFT_OUT_IF_EMPTY: Final = Field(exclude_if=lambda documents: not documents)
Path = Annotated[str, AfterValidator(parse_path)]
Digest = Annotated[str, AfterValidator(_check_digest)]
Number = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
Size = Annotated[int, Field(ge=0, le=2**53 - 1)]
Text = Annotated[str, AfterValidator(_check_note)]
Time = Annotated[AwareDatetime, AfterValidator(in_utc)]


class _Strict:
    """A record whose JSON has no field but its own."""

    __slots__ = ()
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLine(_Strict):
    """A file: its name, its size in bytes and the digest of its content."""

    name: Annotated[str, AfterValidator(_check_file_name)]
    size: Size
    sha256: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportHeader(_Strict):
    """loratree-export.json, written last: the scope of the export, and the digest of every file of lines.

    `path` is the subtree, null for the whole registry; `loratree` is the release that wrote the export.
    """

    schema: str
    loratree: str
    path: Path | None
    created_at: Time
    files: list[FileLine]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLine(_Strict):
    """A base, its manifest, and the files of its stored weights, if any."""

    name: Path
    digest: Digest
    source: Text | None
    created_at: Time
    files: list[FileLine]
    manifest: BaseManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLine(_Strict):
    """A node; `last_number` is the highest version number that it has given out."""

    path: Path
    level: Level
    last_number: Annotated[int, Field(ge=0, le=MAX_NUMBER)]
    created_at: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class PinLine(_Strict):
    """The pin of a version: the version that it was trained on."""

    path: Path
    number: Number
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkLine(_Strict):
    """The reason why a version was withdrawn or quarantined, and the time."""

    reason: Text
    at: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLine(_Strict):
    """A version; its line stands after the line of its pin. A null pin is the base."""

    path: Path
    number: Number
    digest: Digest
    content: Digest
    pin: PinLine | None
    found: PinSource
    config: dict[str, Any]
    summary: AdapterSummary
    files: list[FileLine]
    note: Text | None
    created_at: Time
    withdrawn: MarkLine | None
    quarantined: MarkLine | None
    documents: Annotated[dict[str, str], AfterValidator(_check_documents), _LEFT_OUT_IF_EMPTY] = field(
        default_factory=dict
    )

    @property
    def ref(self) -> str:
        """The version's ref, PATH@NUMBER."""
        return f"{self.path}@{self.number}"

    def problems(self, base_digest: str) -> list[str]:
        """Return one clause for each part that does not match the digests of this line or the format."""
        problems = digest_problems(
            self.ref,
            digest=self.digest,
            content=self.content,
            base_digest=base_digest,
            pin_digest=self.pin.digest if self.pin else None,
            config=self.config,
            files=[FileDigest(file.name, file.size, file.sha256) for file in self.files],
        )
        if [file.name for file in self.files] != [ADAPTER_WEIGHTS]:
            problems.append(f"{self.ref} holds other files than {ADAPTER_WEIGHTS}")
        if self.pin and not is_ancestor(self.pin.path, self.path):
            problems.append(f"{self.ref} is pinned to {self.pin.path}, which is not above it")
        return problems


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasLine(_Strict):
    """A movable name of a version."""

    path: Path
    name: Annotated[str, AfterValidator(parse_alias)]
    number: Number
    updated_at: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class TombstoneLine(_Strict):
    """The record of a deleted version."""

    path: Path
    number: Number
    digest: Digest
    content: Digest
    created_at: Time
    quarantined_reason: Text | None
    reason: Text
    deleted_at: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLine(_Strict):
    """An event at a node of the subtree."""

    path: Path
    kind: Text
    detail: dict[str, Any]
    created_at: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobLine(_Strict):
    """A blob that the export holds, at blobs/sha256/ab/<64 hexadecimal digits>."""

    sha256: Digest
    size: Size


# The files of lines in reading order: a file comes after the files that it refers to.
FILES: Final[dict[str, type[Any]]] = {
    "bases": BaseLine,
    "nodes": NodeLine,
    "versions": VersionLine,
    "tombstones": TombstoneLine,
    "aliases": AliasLine,
    "events": EventLine,
    "blobs": BlobLine,
}
_KINDS: Final[list[Any]] = [ExportHeader, *FILES.values()]
_ADAPTERS: Final[dict[Any, TypeAdapter[Any]]] = {kind: TypeAdapter(kind) for kind in _KINDS}


def written(record: object) -> bytes:
    """Return a record as one line of UTF-8 JSON; equal records give equal bytes."""
    return _ADAPTERS[type(record)].dump_json(record) + b"\n"


def read_record(kind: type[Record], text: bytes, where: str) -> Record:
    """Parse one JSON document strictly: no repeated or unknown key, no conversion. Raises Invalid, naming `where`."""
    try:
        parse_json(text)
        record: Record = _ADAPTERS[kind].validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        at = ".".join(map(str, problem["loc"]))[:100]
        raise Invalid(f"{where} is not valid ({at}: {problem['msg']}): {AGAIN}") from error
    except (ValueError, Invalid) as error:
        raise Invalid(f"{where} is not valid ({error}): {AGAIN}") from error
    return record


def read_lines(stream: BinaryIO, kind: type[Record], name: str) -> Iterator[Record]:
    """Read a file of lines, one at a time, each at most MAX_LINE bytes. Raises Invalid, naming the line."""
    for number in itertools.count(1):
        text = stream.readline(MAX_LINE + 1)
        if not text:
            return
        where = f"line {number} of {name}"
        if len(text) > MAX_LINE:
            raise Invalid(f"{where} is longer than {MAX_LINE} bytes: {AGAIN}")
        if not text.endswith(b"\n"):
            raise Invalid(f"{where} is cut off: {AGAIN}")
        yield read_record(kind, text, where)
