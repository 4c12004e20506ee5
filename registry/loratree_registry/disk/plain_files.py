"""Safe reading of a file that anyone may have put there; standard library only."""

import io
import os
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from loratree_registry.errors import Invalid, LoratreeError, NotFound, listed

LFS_POINTER: Final = b"version https://git-lfs"  # how a pointer of git-LFS begins, which stands for a file's content
MAX_NAME: Final = 255  # bytes of a file's name on common file systems
_BUFFER: Final = 128 * 1024
_MODELS: Final = "models--"  # how the folder of a repository begins in the hub's cache


class _Named(io.FileIO):
    """A file whose failed reads raise an error that names it; an OSError of a read has no file's name."""

    def __init__(self, file: Path | int, path: Path, failure: Callable[[str], LoratreeError]) -> None:
        super().__init__(file, "rb")
        self._path, self._failure = path, failure

    def readinto(self, buffer: Any) -> int:
        try:
            return super().readinto(buffer) or 0
        except OSError as error:
            raise self._describe(error) from error

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise self._describe(error) from error

    def _describe(self, error: OSError) -> LoratreeError:
        return self._failure(f"{self._path} cannot be read: {error.strerror or error}")


def open_named(path: Path, failure: Callable[[str], LoratreeError], *, handle: int | None = None) -> BufferedReader:
    """Open a file for reading; a read that fails raises `failure` with a sentence that names the file.

    `handle` is the file's descriptor if it is open already. Opening raises OSError, as `Path.open` does.
    """
    return BufferedReader(_Named(path if handle is None else handle, path, failure), _BUFFER)


def open_plain(path: Path, *, remedy: str) -> BufferedReader:
    """Open a plain file or a link to one; never wait for a pipe. Raises Invalid, also if a read fails later."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: no file system allows the name
        raise Invalid(f"{path} cannot be read: {getattr(error, 'strerror', error)}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Invalid(f"{path} is not a file: {remedy}")
    return open_named(path, Invalid, handle=handle)


def read_plain(path: Path, *, limit: int, remedy: str) -> bytes:
    """Read a plain file of at most `limit` bytes. Raises Invalid."""
    try:
        with open_plain(path, remedy=remedy) as stream:
            content = stream.read(limit + 1)
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    if content.startswith(LFS_POINTER):
        raise Invalid(f"{path} is a pointer of git-LFS, not the file itself: run git lfs pull where it was cloned")
    if len(content) > limit:
        raise Invalid(f"{path} is larger than {limit} bytes: {remedy}")
    return content


def expand_home(path: Path) -> Path:
    """Return a path with its leading `~` or `~user` expanded. Raises Invalid if there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise Invalid(f"{path} begins with a user that this machine does not know: write the whole path") from error


def plain_path(folder: Path, name: str, *, source: str) -> Path:
    """Return the path in `folder` of a file that someone else named. Raises Invalid unless it is one plain name.

    A name with a slash, `..` or an absolute one could name any file of this machine. `source` says who named it.
    """
    is_plain = name.isprintable() and name not in ("", ".", "..") and not {"/", "\\"} & set(name)
    if not is_plain or len(os.fsencode(name)) > MAX_NAME:
        raise Invalid(f"{source} names the file {ascii(name)[:100]}, expected a plain file name: do not trust it")
    return folder / name


def check_links(folder: Path) -> None:
    """Raise Invalid if a config or weights are a link to nothing, as half a download leaves them in the hub's cache."""
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors") and path.is_symlink() and not path.exists():
            raise Invalid(f"{path} is a link to {path.readlink()}, which is not there: download the files again")


def check_inside(folder: Path, within: Path | None = None) -> None:
    """Raise Invalid if a file of a model's folder, or of the folder `within` it, is a link that leads out of it.

    A link in a snapshot of the hub's cache may lead to the `blobs` of its repository, where the cache keeps the files.
    Without this rule, a folder that someone else made could have any file of this machine copied or stored.
    """
    inside = folder.resolve()
    allowed = [inside, *(path.parent / "blobs" for path in inside.parents if path.name == "snapshots")]
    for path in sorted((within or folder).iterdir()):
        if not path.is_symlink() or path.is_dir():
            continue
        target = path.resolve()
        if not any(target.is_relative_to(place) for place in allowed):
            raise Invalid(
                f"{path} is a link to {target}, outside of its folder: put a copy of the file (or a hard link) in its "
                "place, or give the folder that holds the file"
            )


def explain_hub_cache(folder: Path) -> str | None:
    """Return what to give instead if `folder` is the hub's cache, or the folder of a repository in it; None if not."""
    if (snapshot := _find_snapshot(folder)) is not None:
        return f"{folder} is a folder of the hub's cache: give the snapshot in it, {snapshot}"
    if models := _list_models(folder):
        snapshots = [str(_find_snapshot(model) or model) for model in models]
        return f"{folder} is the hub's cache: give the snapshot of one of its models, {listed(snapshots, limit=3)}"
    return None


def check_model_folder(folder: Path) -> None:
    """Raise NotFound if a model's folder is none, and Invalid, with what to give, if it is the hub's cache."""
    if folder.is_file():
        raise Invalid(f"{folder} is a file: give the folder of the model, {folder.parent}")
    if not folder.is_dir():
        raise NotFound(f"{folder} is not a directory: expected the folder of a downloaded model, not a name on a hub")
    if (cache := explain_hub_cache(folder)) is not None:
        raise Invalid(cache)


def hub_id_of(folder: Path) -> str | None:
    """Return the hub's name of a snapshot in the hub's cache, such as `org/name`, or None for any other folder.

    The cache names a repository's folder models--ORG--NAME, and no name on the hub has two dashes in a row.
    """
    snapshots = folder.absolute().parent
    name = snapshots.parent.name
    if snapshots.name != "snapshots" or not name.startswith(_MODELS):
        return None
    return name.removeprefix(_MODELS).replace("--", "/") or None


def _find_snapshot(folder: Path) -> Path | None:
    """Return the snapshot to use if `folder` is a repository's in the hub's cache, or `snapshots` in it; else None.

    It is the one that refs/main names, as the hub's own library takes it, or else the newest.
    """
    folder = folder.parent if folder.name == "snapshots" else folder
    snapshots = folder / "snapshots"
    if not (folder / "blobs").is_dir() or not snapshots.is_dir():
        return None
    if (main := _read_ref(folder / "refs" / "main")) is not None and (snapshots / main).is_dir():
        return snapshots / main
    return max(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, default=None)


def _list_models(folder: Path) -> list[Path]:
    """Return the models' folders in `folder` if it is the hub's cache or the folder around that, else an empty list."""
    caches = (folder, folder / "hub")
    return [path for cache in caches if cache.is_dir() for path in sorted(cache.glob(f"{_MODELS}*")) if path.is_dir()]


def _read_ref(path: Path) -> str | None:
    try:
        name = read_plain(path, limit=MAX_NAME, remedy="").decode().strip()
        return plain_path(path.parent, name, source=str(path)).name
    except (Invalid, UnicodeDecodeError):
        return None
