"""The folders of bases' checkpoints on this machine: one file per base, HOME/bases/<64 hexadecimal digits>.json."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.core.paths import is_digest
from loratree_registry.core.times import now
from loratree_registry.disk.disk_errors import disk_errors
from loratree_registry.disk.private import make_private
from loratree_registry.errors import Invalid, Unavailable

BASES: Final = "bases"
_LEFT: Final = timedelta(hours=1)  # writing takes milliseconds
T = TypeVar("T")


def remember_base(home: Path, digest: str, directory: Path, files: Mapping[str, str] | None = None) -> None:
    """Record that the base's checkpoint is in `directory`, in an atomic write that only the owner can read.

    `files` has the digests of its weights by name, for a base whose tensors cannot be compared one by one.
    Each base has its own file, so two processes that record different bases need no lock.
    Raises Unavailable if HOME cannot be written.
    """
    file = _file_of(home, digest)
    try:
        make_private(file.parent)
        sweep_bases(home, before=now() - _LEFT)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=".")  # created 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as temporary:
                json.dump({"digest": digest, "directory": str(directory.resolve()), "files": files}, temporary)
                temporary.flush()
                os.fsync(temporary.fileno())
            Path(name).replace(file)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(f"{file} cannot be written ({error.strerror}): set LORATREE_HOME elsewhere") from error


def sweep_bases(home: Path, *, before: datetime, dry_run: bool = False) -> list[str]:
    """Remove temporary files that killed processes wrote before a moment; return their names. Raises Unavailable."""
    names = []
    with disk_errors(home, "LORATREE_HOME"):
        for path in (home / BASES).glob(".*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < before.timestamp():
                    names.append(path.name)
                    if not dry_run:
                        path.unlink()
    return names


def base_directory(home: Path, digest: str) -> Path | None:
    """Return the folder of the base's checkpoint, or None if it is unknown or no longer exists. Raises Invalid."""
    directory = _read(home, digest, lambda entry: Path(entry["directory"]))
    return directory if directory is not None and directory.is_dir() else None


def base_files(home: Path, digest: str) -> dict[str, str]:
    """Return the digests of the base's weights by file name, or {} if none are recorded. Raises Invalid."""
    return _read(home, digest, lambda entry: dict(entry.get("files") or {})) or {}


def _read(home: Path, digest: str, field: Callable[[dict[str, Any]], T]) -> T | None:
    file = _file_of(home, digest)
    try:
        return field(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, RecursionError, AttributeError) as error:
        raise Invalid(f"{file} cannot be read ({error}): delete it and add the base again") from error


def _file_of(home: Path, digest: str) -> Path:
    if not is_digest(digest):  # it comes from a server and becomes a file name
        raise Invalid(f"{digest!r} is not a base's digest: expected sha256: and 64 hexadecimal digits")
    return home / BASES / f"{digest.removeprefix(DIGEST_PREFIX)}.json"
