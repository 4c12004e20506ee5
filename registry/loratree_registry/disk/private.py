"""Folders and files that only their owner can enter or read, whatever the umask is."""

import os
from pathlib import Path


def make_private(folder: Path) -> None:
    """Create a folder, and each missing folder above it, with mode 0700; existing folders keep theirs. Raises OSError.

    `mkdir(parents=True)` would give the folders above the mode of the umask.
    """
    missing = [folder]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for path in reversed(missing):
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            if not path.is_dir():
                raise


def private_opener(path: str, flags: int) -> int:
    """Open a file for `open(opener=)`: one that is created has mode 0600."""
    return os.open(path, flags, 0o600)


def is_usable(folder: Path) -> bool:
    """Return whether this process may create a file in `folder`."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def exists(path: Path) -> bool:
    """Return whether there is something at `path`. Raises OSError if this cannot be known, as in a locked folder."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
