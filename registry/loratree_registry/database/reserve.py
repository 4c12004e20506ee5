"""A reserve of disk space beside an SQLite file, so that a full disk can still be read and freed.

SQLite in WAL mode needs a few pages even to read, and some more to delete. The reserve is a hidden file of RESERVE
bytes of nothing. Opening a database on a full disk takes STEP bytes of it; what deletes or collects takes it all. It
is filled up again when the database is closed, if there is room.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from loratree_registry.disk.private import private_opener

RESERVE: Final = 4 * 1024 * 1024
STEP: Final = 256 * 1024  # the index of SQLite's log takes 32 KiB, and the log of a small write about as much


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user can still write on the disk of a folder; 2**63 if the system does not tell."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return 2**63
    return status.f_bavail * status.f_frsize


def reserve_of(database: Path) -> Path:
    """Return the path of the reserve of an SQLite file."""
    return database.with_name(f".{database.name}.reserve")


def release(database: Path, *, wanted: int) -> None:
    """Give back space of the reserve if fewer than `wanted` bytes are free: `wanted` bytes of it, or what is left."""
    if free_bytes(database.parent) >= wanted:
        return
    with suppress(OSError):
        path = reserve_of(database)
        left = path.stat().st_size - wanted
        if left > 0:
            os.truncate(path, left)
        else:
            path.unlink()


def refill(database: Path) -> None:
    """Make the reserve whole if the disk has room for it; else fill it up as far as it goes, a STEP at a time."""
    path = reserve_of(database)
    with suppress(OSError):
        if not database.exists() or (path.exists() and path.stat().st_size >= RESERVE):
            return
        with open(path, "ab", opener=private_opener) as file:
            size = file.tell()
            if free_bytes(database.parent) >= 4 * RESERVE:
                os.posix_fallocate(file.fileno(), 0, RESERVE)
                return
            while size < RESERVE and free_bytes(database.parent) >= STEP:
                os.posix_fallocate(file.fileno(), size, min(STEP, RESERVE - size))
                size += STEP
