"""Errors of a disk, each as one sentence with a remedy."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loratree_registry.errors import Unavailable

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_FOLDER = (errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


@contextmanager
def disk_errors(folder: Path, setting: str, *, needs: int = 0) -> Iterator[None]:
    """Turn an OSError inside the block into Unavailable; the message names `setting`, which moves `folder` elsewhere.

    `needs` is the number of bytes that the block writes, 0 if the number is not known.
    """
    try:
        yield
    except OSError as error:
        raise Unavailable(_describe(folder, setting, needs, error)) from error


def sync(path: Path) -> None:
    """Wait until a file's bytes or a folder's names are on the disk; only then a rename survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _describe(folder: Path, setting: str, needs: int, error: OSError) -> str:
    if error.errno in _FULL:
        free = shutil.disk_usage(_find_existing(folder)).free
        wanted = f"needs {needs} bytes, {free} are free" if needs else f"{free} bytes are free"
        return f"the disk of {folder} is full: {wanted}; free some space or set {setting}"
    if error.errno in _NO_FOLDER:
        return f"{folder} is no folder, or a part of its path is none ({error.strerror}): set {setting} to a folder"
    return f"{folder} cannot be used: {error.strerror or error}; restore its permissions or set {setting}"


def _find_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
