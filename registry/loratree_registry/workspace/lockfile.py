"""The lockfile loratree.json: a resolved chain, its digests, and the files that were made of it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loratree_registry.core.chain import Chain, Limit, Mode, Step, form, weight_number
from loratree_registry.core.digests import FileDigest, digest_json, digest_stream, file_list
from loratree_registry.core.paths import is_digest, parse_path, parse_ref
from loratree_registry.core.progress import Counter, Progress, silent
from loratree_registry.core.records import ADAPTER_CONFIG
from loratree_registry.core.strict_json import parse_json
from loratree_registry.core.text import counted, shortened
from loratree_registry.disk.plain_files import open_plain, plain_path, read_plain
from loratree_registry.errors import Invalid, NotFound, listed

LOCKFILE_SCHEMA: Final = "loratree/lockfile/1"
LOCKFILE: Final = "loratree.json"
MAX_LOCKFILE: Final = 4 * 1024 * 1024
COMPOSE_AGAIN: Final = "compose it again"
_MODEL_CONFIG: Final = "config.json"
_WEIGHTS: Final = (".safetensors", ".bin", ".index.json")


@dataclass(frozen=True, slots=True)
class Artifact:
    """The files made of a chain: a merged model, or a flattened adapter, truncated if there is a limit."""

    mode: Mode
    dtype: str
    files: tuple[FileDigest, ...]
    limit: Limit | None = None

    @property
    def form(self) -> str:
        """The mode and the limit, for people: `merge`, `flatten`, `flatten to rank 32`."""
        return form(self.mode, self.limit)

    @property
    def digest(self) -> str:
        """SHA-256 over the sorted [name, size, sha256] of the files."""
        return digest_json(file_list(self.files))


@dataclass(frozen=True, slots=True)
class Lockfile:
    """The content of loratree.json: the ref, its resolved chain, and the artifact made of the chain."""

    ref: str
    chain: Chain
    artifact: Artifact

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document; the same ref, chain and artifact give the same bytes."""
        return {
            "schema": LOCKFILE_SCHEMA,
            "ref": self.ref,
            "base": {"name": self.chain.base, "digest": self.chain.base_digest},
            "chain": [
                {
                    "path": step.path,
                    "version": step.version,
                    "digest": step.digest,
                    "weight": weight_number(step.weight),
                }
                for step in self.chain.steps
            ],
            "composition": self.chain.digest,
            "artifact": {
                "mode": self.artifact.mode,
                "dtype": self.artifact.dtype,
                **_limit_fields(self.artifact.limit),
                "digest": self.artifact.digest,
                "files": [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in sorted(self.artifact.files)],
            },
        }

    def write(self, directory: Path) -> None:
        """Write loratree.json into `directory`."""
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"
        (directory / LOCKFILE).write_text(text, encoding="utf-8")


def read_lockfile(directory: Path) -> Lockfile | None:
    """Read `directory`/loratree.json and check its digests; return None if there is no such file. Raises Invalid."""
    path = directory / LOCKFILE
    if not os.path.lexists(path):
        return None
    content = read_plain(path, limit=MAX_LOCKFILE, remedy=COMPOSE_AGAIN)
    try:
        document = parse_json(content)
        lockfile = _from_json(document)
        stated = document["composition"], document["artifact"]["digest"]
        edited = stated != (lockfile.chain.digest, lockfile.artifact.digest)
    except (ValueError, TypeError, KeyError, AttributeError, Invalid) as error:
        raise Invalid(f"{path} is not a {LOCKFILE_SCHEMA} document ({_describe(error)}): {COMPOSE_AGAIN}") from error
    if edited:
        raise Invalid(f"{path} was edited: its chain or files do not give the digests it states, {COMPOSE_AGAIN}")
    return lockfile


def check_artifact(
    lockfile: Lockfile, directory: Path, *, beside: frozenset[str] = frozenset(), progress: Progress = silent
) -> None:
    """Check that `directory` holds the files of the lockfile, byte for byte, and no other file that could be loaded.

    An extra file changes the model: transformers prefers a model.safetensors to shards, and loads an adapter beside a
    model. Checkpoint folders and a README, which a Trainer adds, are allowed, and the files `beside`.

    Raises Invalid, NotFound.
    """
    _check_complete(lockfile.artifact, directory)
    foreign = sorted(_list_loadable(directory) - {file.name for file in lockfile.artifact.files} - beside)
    if foreign:
        raise Invalid(
            f"{directory} holds files that are not of its composition and would be loaded with it "
            f"({listed(foreign, limit=5)}): move them away, or compose into another folder"
        )
    counter = Counter(progress, f"comparing {directory}", sum(file.size for file in lockfile.artifact.files))
    for file in lockfile.artifact.files:
        path = _path_of(directory, file.name)
        if not os.path.exists(path):  # noqa: PTH110 — Path.exists raises for a name too long
            raise NotFound(f"{path} is listed in {LOCKFILE} and is not there: {COMPOSE_AGAIN}")
        with open_plain(path, remedy=COMPOSE_AGAIN) as stream:
            if (size := os.fstat(stream.fileno()).st_size) != file.size:
                raise Invalid(
                    f"{path} changed since it was composed: expected {file.sha256} of {counted(file.size, 'byte')}, "
                    f"found {counted(size, 'byte')}, {COMPOSE_AGAIN}"
                )
            try:
                actual = digest_stream(stream, counter.add)
            except OSError as error:
                raise Invalid(f"{path} cannot be read: {error.strerror}") from error
        if actual != (file.sha256, file.size):
            raise Invalid(
                f"{path} changed since it was composed: expected {file.sha256} of {counted(file.size, 'byte')}, "
                f"found {actual[0]} of {actual[1]}, {COMPOSE_AGAIN}"
            )


def _path_of(directory: Path, name: str) -> Path:
    """Return the path of a file of a composition: in its folder, or in a folder of a pipeline's module in there."""
    folder, slash, inner = name.partition("/")
    path = plain_path(directory, folder, source=str(directory / LOCKFILE))
    return plain_path(path, inner, source=str(directory / LOCKFILE)) if slash else path


def _check_complete(artifact: Artifact, directory: Path) -> None:
    """Check that the lockfile lists a whole model or adapter, as an empty list would pass every later check."""
    names = {file.name for file in artifact.files}
    config = _MODEL_CONFIG if artifact.mode == "merge" else ADAPTER_CONFIG
    if config not in names or not any(name.endswith(".safetensors") for name in names):
        raise Invalid(
            f"{directory / LOCKFILE} lists no whole {artifact.mode} composition ({listed(sorted(names), limit=5)}), "
            f"expected {config} and safetensors files: {COMPOSE_AGAIN}"
        )


def _list_loadable(directory: Path) -> set[str]:
    """Return the names of the files in `directory` that transformers or PEFT may load."""
    try:
        names = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise NotFound(f"{directory} cannot be read: {error.strerror}") from error
    return {name for name in names if name in (_MODEL_CONFIG, ADAPTER_CONFIG) or name.endswith(_WEIGHTS)}


def _from_json(document: dict[str, Any]) -> Lockfile:
    if document["schema"] != LOCKFILE_SCHEMA:
        raise ValueError(f"its schema is {shortened(ascii(document['schema']))}")
    base, artifact = document["base"], document["artifact"]
    if artifact["mode"] not in ("merge", "flatten"):
        raise ValueError(f"its mode is {shortened(ascii(artifact['mode']))}")
    steps = tuple(
        Step(
            parse_path(step["path"]),
            _parse_whole(step["version"], least=1),
            _parse_digest(step["digest"]),
            _parse_number(step["weight"]),
        )
        for step in document["chain"]
    )
    files = tuple(
        FileDigest(_parse_file_name(file["name"]), _parse_whole(file["size"], least=0), _parse_digest(file["sha256"]))
        for file in artifact["files"]
    )
    return Lockfile(
        ref=str(parse_ref(document["ref"])),
        chain=Chain(parse_path(base["name"]), _parse_digest(base["digest"]), steps),
        artifact=Artifact(artifact["mode"], _parse_text(artifact["dtype"]), files, _parse_limit(artifact)),
    )


def _limit_fields(limit: Limit | None) -> dict[str, int | float]:
    if limit is None:
        return {}
    return {key: value for key, value in (("rank", limit.rank), ("energy", limit.energy)) if value is not None}


def _parse_limit(artifact: dict[str, Any]) -> Limit | None:
    if not {"rank", "energy"} & artifact.keys():
        return None
    if artifact["mode"] != "flatten":
        raise ValueError("it has a rank or energy limit, which only flatten may have")
    rank, energy = artifact.get("rank"), artifact.get("energy")
    return Limit(
        None if rank is None else _parse_whole(rank, least=1),
        None if energy is None else _parse_number(energy),
    )


def _describe(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _parse_digest(value: object) -> str:
    if not is_digest(value):
        raise ValueError(f"{shortened(ascii(value))} is not a digest")
    return str(value)


def _parse_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shortened(ascii(value))} is not a text")
    return value


def _parse_whole(value: object, *, least: int) -> int:
    if type(value) is not int or not least <= value < 2**53:
        raise ValueError(f"{shortened(ascii(value))} is not a whole number from {least} and below 2**53")
    return value


def _parse_number(value: object) -> float:
    if type(value) not in (int, float) or (type(value) is int and abs(value) >= 2**53):
        raise ValueError(f"{shortened(ascii(value))} is not a number that JSON holds exactly")
    return float(value)  # type: ignore[arg-type]


def _parse_file_name(value: object) -> str:
    name = _parse_text(value)
    parts = name.split("/")  # at most a folder and a file in it
    if len(parts) > 2 or {"", ".", ".."} & set(parts) or "\\" in name or not name.isprintable():
        raise ValueError(f"{shortened(ascii(name))} is not a file name")
    return name
