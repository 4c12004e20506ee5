"""What a disk refuses, said in one sentence."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loratree_registry.errors import Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def disk_errors(folder: Path, setting: str, *, needs: int = 0) -> Iterator[None]:
    """Turns an OSError inside the block into Unavailable; `setting` is what moves `folder` elsewhere.

    `needs` is how many bytes are to be written, 0 where that is not known.
    """
    try:
        yield
    except OSError as error:
        raise Unavailable(_sentence(folder, setting, needs, error)) from error


def sync(path: Path) -> None:
    """Waits until a file's bytes are on the disk, or a folder's names: a rename survives a power cut only then."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sentence(folder: Path, setting: str, needs: int, error: OSError) -> str:
    if error.errno in _FULL:
        free = shutil.disk_usage(_existing(folder)).free
        wanted = f"needs {needs} bytes, {free} are free" if needs else f"{free} bytes are free"
        return f"the disk of {folder} is full: {wanted}; free some space or set {setting}"
    return f"{folder} cannot be used: {error.strerror or error}; give it back its permissions or set {setting}"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
