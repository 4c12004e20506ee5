"""Destinations of an export: a folder or a tar file, which appears whole or not at all, with its header last."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.verified import verified
from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.disk.disk_errors import disk_errors, sync
from loratree_registry.disk.whole_folder import shelter_beside, whole_folder
from loratree_registry.errors import Conflict, Invalid
from loratree_registry.housekeeping.exports.format import HEADER

BLOBS = "blobs"
TAR = ".tar"
_COMPRESSED = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst")


class Destination(Protocol):
    """A destination that an export is being written to; its files of lines are written to `folder`."""

    folder: Path

    def put(self, sha256: str, size: int, stream: BinaryIO) -> None:
        """Write the bytes of one blob. Raises Invalid if `stream` holds other bytes."""
        ...

    def seal(self, header: bytes) -> None:
        """Write the header, which says that the rest is whole."""
        ...


@contextmanager
def open_destination(out: Path) -> Iterator[Destination]:
    """Open a new folder `out`, or a tar file if the name ends in .tar; `out` appears only if the block succeeds.

    Raises Invalid for the name of a compressed file, Conflict if `out` already exists, Unavailable if the disk refuses.
    """
    if out.suffix.lower() in _COMPRESSED:
        raise Invalid(f"{out} names a compressed file, but weights do not get smaller: name a .tar file or a folder")
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise Conflict(f"{out} is there already: give a new name to export to")
    if out.suffix == TAR:
        with _open_tar(out) as tar:
            yield tar
    else:
        with whole_folder(out) as folder:
            yield _Folder(folder)


def blob_name(sha256: str) -> str:
    """Return the name of a blob in an export: blobs/sha256/ab/<64 hexadecimal digits>."""
    name = sha256.removeprefix(DIGEST_PREFIX)
    return f"{BLOBS}/sha256/{name[:2]}/{name}"


class _Folder:
    """A folder with a local blob store inside, which hashes each blob, syncs it to the disk and reads it back."""

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
    """A tar file. The files of lines are first written to `folder`, because a tar states each size before the bytes."""

    def __init__(self, tar: tarfile.TarFile, folder: Path) -> None:
        self.folder = folder
        self._tar = tar

    def put(self, sha256: str, size: int, stream: BinaryIO) -> None:
        self._add(blob_name(sha256), size, _Checked(stream, sha256, size))

    def seal(self, header: bytes) -> None:
        for path in [*sorted(self.folder.iterdir()), self._write_header(header)]:
            with path.open("rb") as stream:
                self._add(path.name, path.stat().st_size, stream)

    def _write_header(self, header: bytes) -> Path:
        path = self.folder / HEADER
        path.write_bytes(header)
        return path

    def _add(self, name: str, size: int, stream: "BinaryIO | _Checked") -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o600
        self._tar.addfile(member, stream)  # type: ignore[arg-type]  # it only reads
        # tarfile keeps every member in a list, which would grow with each blob
        self._tar.members.clear()  # type: ignore[attr-defined]


class _Checked:
    """A stream for `addfile` that checks its own bytes: the last read fails if they are not the expected ones."""

    def __init__(self, stream: BinaryIO, sha256: str, size: int) -> None:
        self._chunks, self._left, self._buffer = verified(stream, sha256, size), size, b""

    def read(self, count: int) -> bytes:
        while len(self._buffer) < count and (chunk := next(self._chunks, b"")):
            self._buffer += chunk
        content, self._buffer = self._buffer[:count], self._buffer[count:]
        self._left -= len(content)
        if not self._left:
            next(self._chunks, None)  # reaches the end of the generator, which then compares the digest
        return content


@contextmanager
def _open_tar(out: Path) -> Iterator[_Tar]:
    out = out.absolute()
    with disk_errors(out.parent, "--out"), shelter_beside(out) as folder:
        lines, temporary = folder / "lines", folder / "tar"
        lines.mkdir()
        with tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as tar:
            yield _Tar(tar, lines)
        sync(temporary)
        temporary.replace(out)
        sync(out.parent)
