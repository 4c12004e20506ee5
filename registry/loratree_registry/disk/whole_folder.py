"""Atomic creation of a folder: it appears whole or not at all."""

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from loratree_registry.disk.disk_errors import sync
from loratree_registry.errors import Conflict, Unavailable

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` if the block succeeds, and is removed if the block fails.

    The folder lies in a hidden sibling of `out`, on the same file system, so that one rename moves it into place. The
    files directly in the folder are on the disk before the rename; a caller that makes subfolders syncs their files
    itself, as LocalBlobStore does. The next call removes the folder of a killed process. `out` must be absent or empty;
    a link to an empty folder stays a link. Raises Conflict if another program filled `out` in the meantime or this
    process runs in it, Unavailable if the disk refuses.
    """
    try:
        out = _resolve_target(out)
        with shelter_beside(out) as shelter:
            stage = shelter / "out"  # mkdtemp's folder is private to its owner; this folder has the user's usual mode
            stage.mkdir()
            yield stage
            for path in (*stage.iterdir(), stage):
                sync(path)
            _reveal(stage, out)
    except OSError as error:
        raise Unavailable(
            f"{error.filename or out} cannot be written ({error.strerror or error}): "
            "check the disk's space and permissions, or choose another folder"
        ) from error


@contextlib.contextmanager
def shelter_beside(out: Path) -> Iterator[Path]:
    """Yield a private, hidden folder beside `out` for what is not whole yet, and remove it at the end of the block.

    It first removes the shelters of `out` that killed processes left: theirs are not locked. Raises OSError.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    with _lock(Path(tempfile.mkdtemp(prefix=_prefix_of(out), dir=out.parent))) as shelter:
        yield shelter


def _resolve_target(out: Path) -> Path:
    """Return the real path of `out`. Raises Conflict if the rename would replace the working directory."""
    target = out.resolve()
    here = Path.cwd()
    if target == here or target in here.parents:
        raise Conflict(f"{out} is the folder that this command runs in: give a new folder, such as {out / 'out'}")
    return target


def _reveal(stage: Path, out: Path) -> None:
    try:
        stage.replace(out)
    except OSError as error:
        if error.errno in _TAKEN:
            raise Conflict(f"{out} was filled by another program in the meantime: choose another folder") from error
        raise
    sync(out.parent)


@contextlib.contextmanager
def _lock(shelter: Path) -> Iterator[Path]:
    """Lock `shelter` during the block, so that no other process sweeps it, and then remove it."""
    try:
        handle = os.open(shelter, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield shelter
        finally:
            os.close(handle)
    finally:
        shutil.rmtree(shelter, ignore_errors=True)


def _sweep(out: Path) -> None:
    for shelter in out.parent.glob(f"{glob.escape(_prefix_of(out))}*"):
        with contextlib.suppress(OSError):
            handle = os.open(shelter, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(shelter, ignore_errors=True)
            finally:
                os.close(handle)


def _prefix_of(out: Path) -> str:
    return f".{out.name}.loratree-"
