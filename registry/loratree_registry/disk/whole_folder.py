"""A folder that is there whole or not at all."""

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
    """Gives an empty folder that becomes `out` when the block ends well, and is removed when it does not.

    It lies in a hidden sibling of `out`, on the same file system, so that one rename does it; what a killed process
    left there is removed by the next. Everything is on the disk before the name is. `out` must be absent or empty; a
    link to such a folder stays one. Raises Conflict where it was filled in the meantime or is where this process
    stands, Unavailable where the disk refuses.
    """
    try:
        out = _destination(out)
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        with _locked(Path(tempfile.mkdtemp(prefix=_prefix(out), dir=out.parent))) as shelter:
            stage = shelter / "out"  # mkdtemp's own mode is for its owner alone; this one has the user's
            stage.mkdir()
            yield stage
            for path in (*stage.iterdir(), stage):
                sync(path)
            _reveal(stage, out)
    except OSError as error:
        raise Unavailable(
            f"{error.filename or out} cannot be written ({error.strerror or error}): "
            "see to the disk's space and permissions, or choose another folder"
        ) from error


def _destination(out: Path) -> Path:
    """Where `out` leads to; never the working directory, whose name would then be another folder's."""
    found = out.resolve()
    here = Path.cwd()
    if found == here or found in here.parents:
        raise Conflict(f"{out} is the folder that this command runs in: give a new folder, such as {out / 'out'}")
    return found


def _reveal(stage: Path, out: Path) -> None:
    try:
        stage.replace(out)
    except OSError as error:
        if error.errno in _TAKEN:
            raise Conflict(f"{out} was filled by another program in the meantime: choose another folder") from error
        raise
    sync(out.parent)


@contextlib.contextmanager
def _locked(shelter: Path) -> Iterator[Path]:
    """Holds `shelter` locked, so that no other process sweeps it, and removes it in the end."""
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
    for shelter in out.parent.glob(f"{glob.escape(_prefix(out))}*"):
        with contextlib.suppress(OSError):
            handle = os.open(shelter, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(shelter, ignore_errors=True)
            finally:
                os.close(handle)


def _prefix(out: Path) -> str:
    return f".{out.name}.loratree-"
