"""A cache of the parts that the demo has made: each records its inputs and is checked byte for byte."""

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from loratree_registry.core.digests import digest_json, digest_stream
from loratree_registry.errors import Conflict, Invalid

RECORDS: Final = ".made"


class Cache:
    """The parts under one folder. A part is a file or a folder; its record is written when the part is whole.

    A part is made again if its inputs or its bytes differ from its record, or if it has no record, so an interrupted
    run continues where it stopped. Raises Invalid if the folder holds files that are not the demo's.
    """

    def __init__(self, root: Path) -> None:
        _check_ours(root)
        self.root = root
        self._records = root / RECORDS
        self._records.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the folder against other runs. Raises Conflict if another run holds the lock."""
        with (self._records / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Conflict(f"another demo is at work in {self.root}: wait for it, or give another --out") from error
            yield

    def clear(self) -> None:
        """Remove every recorded part."""
        for record in sorted(self._records.rglob("*.json")):
            self.drop(record.relative_to(self._records).with_suffix("").as_posix())

    def holds(self, name: str, inputs: Any) -> bool:
        """Return whether the part `name` exists, is whole, and was made of `inputs` (any JSON value)."""
        try:
            record = json.loads(self._record(name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return False
        return bool(record == {"inputs": digest_json(inputs), "files": self.files(name)})

    def make(self, name: str, inputs: Any, build: Callable[[Path], None]) -> bool:
        """Let `build` write the part `name` unless the cache holds it; return whether `build` ran."""
        if self.holds(name, inputs):
            return False
        self.drop(name)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        build(path)
        self._write_record(name, {"inputs": digest_json(inputs), "files": self.files(name)})
        return True

    def drop(self, name: str) -> None:
        """Remove a part and its record, the record first."""
        self._record(name).unlink(missing_ok=True)
        _remove(self.root / name)

    def digest(self, name: str) -> str:
        """Return the digest of a part's files, an input of every part that is made from it."""
        return digest_json(self.files(name))

    def files(self, name: str) -> list[list[str]]:
        """List [name, digest] of each file of a part, sorted."""
        path = self.root / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return [[file.relative_to(self.root).as_posix(), _digest(file)] for file in files if file.is_file()]

    def _record(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def _write_record(self, name: str, record: dict[str, Any]) -> None:
        path = self._record(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        unfinished.write_text(json.dumps(record, indent=1), encoding="utf-8")
        unfinished.replace(path)


def _check_ours(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise Invalid(f"{root} is a file: give --out a folder")
    if root.exists() and any(root.iterdir()) and not (root / RECORDS).is_dir():
        raise Invalid(f"{root} holds files that are not the demo's: give --out an empty or a new folder")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return digest_stream(stream)[0]
