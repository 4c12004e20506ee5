"""Where this machine keeps the checkpoints of bases: HOME/bases.json, base digest → folder."""

import json
import os
import tempfile
from pathlib import Path
from typing import Final

from loratree_registry.errors import Invalid, Unavailable

BASES: Final = "bases.json"


def remember_base(home: Path, digest: str, directory: Path) -> None:
    """Notes that the base's checkpoint is in `directory`, written atomically and readable by its owner alone.

    Raises Unavailable where HOME cannot be written.
    """
    entries = _read(home) | {digest: str(directory.resolve())}
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=home, prefix=f".{BASES}.")  # created 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(entries, file, indent=2, sort_keys=True)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(home / BASES)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise Unavailable(
            f"{home / BASES} cannot be written ({error.strerror}): set LORATREE_HOME elsewhere"
        ) from error


def base_directory(home: Path, digest: str) -> Path | None:
    """The folder of the base's checkpoint on this machine; None where none is known or it is gone."""
    directory = _read(home).get(digest)
    return Path(directory) if directory is not None and Path(directory).is_dir() else None


def _read(home: Path) -> dict[str, str]:
    try:
        entries = json.loads((home / BASES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise Invalid(f"{home / BASES} cannot be read ({error}): delete it and add the bases again") from error
    if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
        raise Invalid(f"{home / BASES} does not map digests to folders: delete it and add the bases again")
    return entries
