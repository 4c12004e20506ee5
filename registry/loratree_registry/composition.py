"""Chains, the digests that name versions and compositions, and the lockfile; standard library only."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from loratree_registry.canonical import digest_json, digest_stream
from loratree_registry.errors import Invalid, NotFound
from loratree_registry.paths import is_digest, parse_path, parse_ref

VERSION_SCHEMA: Final = "loratree/version/1"
COMPOSITION_SCHEMA: Final = "loratree/composition/1"
LOCKFILE_SCHEMA: Final = "loratree/lockfile/1"
LOCKFILE: Final = "loratree.json"

Mode = Literal["merge", "flatten"]


@dataclass(frozen=True, slots=True, order=True)
class FileDigest:
    """A file's name, its size in bytes and the digest of its content."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Step:
    """One version of a chain and the level weight that multiplies its delta."""

    path: str
    version: int
    digest: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Chain:
    """The versions from the root to a leaf, over one base. No step at all is the base itself."""

    base: str
    base_digest: str
    steps: tuple[Step, ...] = ()

    @property
    def digest(self) -> str:
        """The composition digest: it names the sum W + Σ wᵢ sᵢ BᵢAᵢ, whatever dtype or form is made of it."""
        steps = [[step.digest, _weight(step.weight)] for step in self.steps]
        return digest_json({"schema": COMPOSITION_SCHEMA, "base": self.base_digest, "chain": steps})


@dataclass(frozen=True, slots=True)
class Artifact:
    """What was made of a chain: a merged model or a flattened adapter, file by file."""

    mode: Mode
    dtype: str
    files: tuple[FileDigest, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted [name, size, sha256] of the files."""
        return digest_json(file_list(self.files))


@dataclass(frozen=True, slots=True)
class Lockfile:
    """loratree.json: a resolved chain, its digests, and what was made of it."""

    ref: str
    chain: Chain
    artifact: Artifact

    def to_json(self) -> dict[str, Any]:
        """The document as it is written; the same chain and artifact give the same bytes."""
        return {
            "schema": LOCKFILE_SCHEMA,
            "ref": self.ref,
            "base": {"name": self.chain.base, "digest": self.chain.base_digest},
            "chain": [
                {"path": step.path, "version": step.version, "digest": step.digest, "weight": _weight(step.weight)}
                for step in self.chain.steps
            ],
            "composition": self.chain.digest,
            "artifact": {
                "mode": self.artifact.mode,
                "dtype": self.artifact.dtype,
                "digest": self.artifact.digest,
                "files": [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in sorted(self.artifact.files)],
            },
        }

    def write(self, directory: Path) -> None:
        """Writes loratree.json into `directory`."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        (directory / LOCKFILE).write_text(text, encoding="utf-8")


def version_digest(
    *, base_digest: str, pin_digest: str | None, config: dict[str, Any], files: Iterable[FileDigest]
) -> str:
    """Names a version: its base, the version it was trained on, its canonical config and its files.

    Path, number, time and notes stay outside, so a leaf's digest names its whole pinned chain.
    """
    return digest_json(
        {
            "schema": VERSION_SCHEMA,
            "base": base_digest,
            "pin": pin_digest,
            "config": config,
            "files": file_list(files),
        }
    )


def content_digest(config: dict[str, Any], files: Iterable[FileDigest]) -> str:
    """Names an adapter's own content, whatever it was trained on."""
    return digest_json({"config": config, "files": file_list(files)})


def file_list(files: Iterable[FileDigest]) -> list[list[str | int]]:
    """The sorted [name, size, sha256] lists that every digest uses."""
    return [[file.name, file.size, file.sha256] for file in sorted(files)]


def read_lockfile(directory: Path) -> Lockfile | None:
    """Reads `directory`/loratree.json and checks it against itself; None where there is none. Raises Invalid."""
    path = directory / LOCKFILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path} cannot be read: {error}") from error
    try:
        document = json.loads(text)
        lockfile = _from_json(document)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Invalid(f"{path} is not a {LOCKFILE_SCHEMA} document ({error}): compose the directory again") from error
    if document["composition"] != lockfile.chain.digest or document["artifact"]["digest"] != lockfile.artifact.digest:
        raise Invalid(f"{path} was edited: its chain or files do not give the digests it states, compose it again")
    return lockfile


def check_artifact(lockfile: Lockfile, directory: Path) -> None:
    """Checks that every file the lockfile lists is still in `directory`, byte for byte. Raises Invalid, NotFound."""
    for file in lockfile.artifact.files:
        path = directory / file.name
        try:
            with path.open("rb") as stream:
                found, _ = digest_stream(stream)
        except OSError as error:
            raise NotFound(f"{path} is listed in {LOCKFILE} and cannot be read: {error.strerror}") from error
        if found != file.sha256:
            raise Invalid(
                f"{path} changed since it was composed: expected {file.sha256}, found {found}, compose it again"
            )


def _from_json(document: dict[str, Any]) -> Lockfile:
    if document["schema"] != LOCKFILE_SCHEMA:
        raise ValueError(f"its schema is {document['schema']!r}")
    base, artifact = document["base"], document["artifact"]
    if artifact["mode"] not in ("merge", "flatten"):
        raise ValueError(f"its mode is {artifact['mode']!r}")
    steps = tuple(
        Step(parse_path(step["path"]), int(step["version"]), _digest(step["digest"]), float(step["weight"]))
        for step in document["chain"]
    )
    files = tuple(FileDigest(_plain_name(f["name"]), int(f["size"]), _digest(f["sha256"])) for f in artifact["files"])
    return Lockfile(
        ref=str(parse_ref(document["ref"])),
        chain=Chain(parse_path(base["name"]), _digest(base["digest"]), steps),
        artifact=Artifact(artifact["mode"], str(artifact["dtype"]), files),
    )


def _digest(text: object) -> str:
    if not is_digest(text):
        raise ValueError(f"{text!r} is not a digest")
    return str(text)


def _plain_name(name: str) -> str:
    if not name or "/" in name or "\\" in name or name in (".", "..") or "\0" in name:
        raise ValueError(f"{name!r} is not a file name")
    return name


def _weight(weight: float) -> float | int:
    if not math.isfinite(weight):
        raise Invalid(f"a level weight is a finite number, got {weight}")
    return int(weight) if weight == int(weight) and abs(weight) < 2**53 else weight
