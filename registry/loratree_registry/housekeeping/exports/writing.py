"""Where an export is written: a folder or a tar file, whole or not at all, with its header last."""

import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.verified import verified
from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.disk.disk_errors import disk_errors, sync
from loratree_registry.disk.whole_folder import whole_folder
from loratree_registry.errors import Conflict, Invalid
from loratree_registry.housekeeping.exports.format import HEADER

BLOBS = "blobs"
TAR = ".tar"
_COMPRESSED = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst")


class Destination(Protocol):
    """An export that is being written; `folder` is where its files of lines are made."""

    folder: Path

    def put(self, sha256: str, size: int, stream: BinaryIO) -> None:
        """Writes bytes once. Raises Invalid where `stream` holds others."""
        ...

    def seal(self, header: bytes) -> None:
        """Writes the header, which says that the rest is whole."""
        ...


@contextmanager
def open_destination(out: Path) -> Iterator[Destination]:
    """A new folder `out`, or a tar file where its name ends in .tar; nothing is there unless the block ends well.

    Raises Invalid for the name of a compressed file, Conflict where something is there, Unavailable where the disk
    refuses.
    """
    if out.suffix.lower() in _COMPRESSED:
        raise Invalid(f"{out} would be compressed, which weights gain nothing by: name a .tar file or a folder")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise Conflict(f"{out} is there already: give a new name to export to")
    if out.suffix == TAR:
        with _tar(out) as tar:
            yield tar
    else:
        with whole_folder(out) as folder:
            yield _Folder(folder)


def blob_name(sha256: str) -> str:
    """Where bytes lie in an export: blobs/sha256/ab/<64 hexadecimal digits>."""
    name = sha256.removeprefix(DIGEST_PREFIX)
    return f"{BLOBS}/sha256/{name[:2]}/{name}"


class _Folder:
    """A folder whose blobs are a local blob store's: each is hashed, on the disk and read back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._blobs = LocalBlobStore(folder / BLOBS, setting="--out")

    def put(self, sha256: str, size: int, stream: BinaryIO) -> None:
        self._blobs.put(sha256, size, stream)

    def seal(self, header: bytes) -> None:
        temporary = self.folder / BLOBS / "tmp"
        if temporary.exists():
            temporary.rmdir()
        (self.folder / HEADER).write_bytes(header)


class _Tar:
    """A tar file; the files of lines are made in a folder beside it, since a tar says a file's size before it."""

    def __init__(self, tar: tarfile.TarFile, folder: Path) -> None:
        self.folder = folder
        self._tar = tar

    def put(self, sha256: str, size: int, stream: BinaryIO) -> None:
        self._add(blob_name(sha256), size, _Checked(stream, sha256, size))

    def seal(self, header: bytes) -> None:
        for path in [*sorted(self.folder.iterdir()), self._header(header)]:
            with path.open("rb") as stream:
                self._add(path.name, path.stat().st_size, stream)

    def _header(self, header: bytes) -> Path:
        path = self.folder / HEADER
        path.write_bytes(header)
        return path

    def _add(self, name: str, size: int, stream: "BinaryIO | _Checked") -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o600
        self._tar.addfile(member, stream)  # type: ignore[arg-type]  # it only reads
        self._tar.members.clear()  # type: ignore[attr-defined]  # else it keeps one for each blob


class _Checked:
    """A stream that is read as `addfile` reads, and whose last read fails where it held other bytes."""

    def __init__(self, stream: BinaryIO, sha256: str, size: int) -> None:
        self._chunks, self._left, self._buffer = verified(stream, sha256, size), size, b""

    def read(self, count: int) -> bytes:
        while len(self._buffer) < count and (chunk := next(self._chunks, b"")):
            self._buffer += chunk
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        self._left -= len(found)
        if not self._left:
            next(self._chunks, None)  # to the end, where the digest is compared
        return found


@contextmanager
def _tar(out: Path) -> Iterator[_Tar]:
    out = out.absolute()
    with disk_errors(out.parent, "--out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.loratree-") as folder:
            lines, temporary = Path(folder) / "lines", Path(folder) / "tar"
            lines.mkdir()
            with tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
                yield _Tar(tar, lines)
            sync(temporary)
            temporary.replace(out)
            sync(out.parent)
