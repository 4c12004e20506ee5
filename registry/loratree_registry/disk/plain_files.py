"""Safe reading of a file that anyone may have put there; standard library only."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from loratree_registry.errors import Invalid


def open_plain(path: Path, *, remedy: str) -> BinaryIO:
    """Open a plain file or a link to one; never wait for a pipe. Raises Invalid."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: no file system allows the name
        raise Invalid(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Invalid(f"{path} is not a file: {remedy}")
    return os.fdopen(handle, "rb")


def read_plain(path: Path, *, limit: int, remedy: str) -> bytes:
    """Read a plain file of at most `limit` bytes. Raises Invalid."""
    try:
        with open_plain(path, remedy=remedy) as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise Invalid(f"{path} is larger than {limit} bytes: {remedy}")
    return content
