"""What a folder's disk honours."""

import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loratree_registry.blobs.disk import disk_errors, sync

_ROOM: Final = 1024**3  # bytes that should be free: some thirty adapters of 35 MB
_CONTENT: Final = b"loratree"


@dataclass(frozen=True, slots=True)
class Tried:
    """A store's folder, one inside it that is there for the time of the trial, and what moves the store elsewhere."""

    root: Path
    inside: Path
    setting: str


@contextmanager
def trial(root: Path, setting: str) -> Iterator[Tried]:
    """Removes at the end whatever was made."""
    absent = [path for path in (root, *root.absolute().parents) if not path.exists()]
    tried = Tried(root, root / "probe", setting)
    try:
        yield tried
    finally:
        shutil.rmtree(tried.inside, ignore_errors=True)
        for path in absent:
            if path.is_dir():
                path.rmdir()


def _writable(tried: Tried) -> tuple[bool | None, str]:
    with disk_errors(tried.root, tried.setting):
        tried.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        tried.inside.mkdir(mode=0o700, exist_ok=True)
        (tried.inside / "file").write_bytes(_CONTENT)
        same = (tried.inside / "file").read_bytes() == _CONTENT
    return same, f"{tried.root} {'gives back what is written' if same else 'gives back other bytes: check the disk'}"


def _private(tried: Tried) -> tuple[bool | None, str]:
    mode = stat.S_IMODE(tried.root.stat().st_mode)
    if mode & 0o077:
        return False, f"{tried.root} has mode {mode:04o}, so others may read it: chmod 700 {tried.root}"
    return True, f"{tried.root} has mode {mode:04o}, its owner's alone"


def _synced(tried: Tried) -> tuple[bool | None, str]:
    with disk_errors(tried.root, tried.setting):
        sync(tried.inside / "file")
        sync(tried.inside)
    return True, "the disk takes fsync for files and folders"


def _renamed(tried: Tried) -> tuple[bool | None, str]:
    folders = [tried.inside, *(path for name in ("tmp", "sha256") if (path := tried.root / name).exists())]
    if len({path.stat().st_dev for path in folders}) > 1:
        return False, f"tmp and sha256 in {tried.root} are on two file systems, so no rename is atomic: mount one"
    with disk_errors(tried.root, tried.setting):
        (tried.inside / "file").replace(tried.inside / "renamed")
    return True, "a rename is atomic: temporary files and blobs are on one file system"


def _room(tried: Tried) -> tuple[bool | None, str]:
    free = shutil.disk_usage(tried.root).free
    if free < _ROOM:
        return False, f"{free / 1e9:.1f} GB are free in {tried.root}: free some space or set {tried.setting}"
    return True, f"{free / 1e9:.1f} GB are free"


LOCAL_QUESTIONS: Final[Mapping[str, Callable[[Tried], tuple[bool | None, str]]]] = {
    "writable": _writable,
    "private": _private,
    "fsync": _synced,
    "rename": _renamed,
    "free space": _room,
}
