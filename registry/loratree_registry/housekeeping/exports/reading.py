"""Sources of an import: an export in a folder or in a tar file; both are untrusted."""

import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, Protocol, cast

from loratree_registry.blobs.hashing import Hashed
from loratree_registry.core.text import counted
from loratree_registry.disk.plain_files import open_plain
from loratree_registry.errors import Invalid, NotFound
from loratree_registry.housekeeping.exports.format import (
    AGAIN,
    FILES,
    HEADER,
    MAX_HEADER,
    SCHEMA,
    BlobLine,
    ExportHeader,
    read_record,
)
from loratree_registry.housekeeping.exports.format import read_lines as read_stream
from loratree_registry.housekeeping.exports.writing import BLOBS, blob_name

_BLOCK: Final = 512
_GZIP: Final = b"\x1f\x8b"  # how a file that gzip wrote begins
Open = Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an export: its name, its size in bytes, and the function that opens it."""

    name: str
    size: int
    open: Open


class Source(Protocol):
    """The files of an export, by the names that the format gives them; no other file is opened."""

    where: Path

    def open(self, name: str) -> BinaryIO:
        """Open one file; each call gives a new stream, which the caller closes. Raises Invalid."""
        ...

    def blobs(self) -> Iterator[Member]:
        """Yield the files under blobs/ in order of names. Raises Invalid if one is out of order or not a plain file."""
        ...


class Export:
    """An opened export, after the check of its header; `lines` and `blobs` check the rest while they read."""

    def __init__(self, source: Source) -> None:
        self._source = source
        with source.open(HEADER) as stream:
            text = stream.read(MAX_HEADER)
        self.header = read_record(ExportHeader, text, f"{source.where}/{HEADER}")
        if self.header.schema != SCHEMA:
            raise Invalid(f"{source.where} is a {self.header.schema[:80]!r} export, expected {SCHEMA}: use its release")
        self._files = {file.name: file for file in self.header.files}
        if sorted(self._files) != sorted(map(lines_name, FILES)) or len(self._files) != len(self.header.files):
            raise Invalid(f"the header of {source.where} does not list the files of {SCHEMA}: {AGAIN}")

    def lines(self, name: str) -> Iterator[Any]:
        """Yield the records of one of FILES, and check the file's digest at the end. Raises Invalid."""
        file = self._files[lines_name(name)]
        with self._source.open(file.name) as stream:
            hashed = Hashed(stream)
            buffered = io.BufferedReader(_Raw(hashed))
            yield from read_stream(cast("BinaryIO", buffered), FILES[name], f"{self._source.where}/{file.name}")
        if (hashed.digest, hashed.count) != (file.sha256, file.size):
            raise Invalid(f"{self._source.where}/{file.name} is not the file that the header lists: {AGAIN}")

    def blobs(self) -> Iterator[tuple[BlobLine, Open]]:
        """Yield each listed blob and the function that opens it; the bytes are not read.

        Raises Invalid if a listed blob is missing or has another size, or if there is a file that is not listed.
        """
        members = self._source.blobs()
        for blob in self.lines("blobs"):
            name, member = blob_name(blob.sha256), next(members, None)
            if member is None or member.name > name:
                raise Invalid(f"{self._source.where}/{name} is listed but missing: {AGAIN}")
            if member.name < name:
                raise self._describe_foreign(member)
            if member.size != blob.size:
                raise Invalid(
                    f"{self._source.where}/{name} has {counted(member.size, 'byte')}, expected {blob.size}: {AGAIN}"
                )
            yield blob, member.open
        if (extra := next(members, None)) is not None:
            raise self._describe_foreign(extra)

    def describe_damage(self, blob: BlobLine, open_blob: Open) -> Invalid:
        """Read a blob again that could not be stored, and return the error that says what is wrong with its file."""
        where = f"{self._source.where}/{blob_name(blob.sha256)}"
        with open_blob() as stream:
            hashed = Hashed(stream)
            try:
                hashed.drain()
            except OSError as error:
                return Invalid(f"the export is damaged: {where} cannot be read ({error.strerror or error}): {AGAIN}")
        if (hashed.digest, hashed.count) == (blob.sha256, blob.size):
            return Invalid(
                f"{where} changed while it was read: import the export again, and do not change it meanwhile"
            )
        return Invalid(f"the export is damaged: the bytes of {where} have the digest {hashed.digest}: {AGAIN}")

    def _describe_foreign(self, member: Member) -> Invalid:
        return Invalid(f"{self._source.where} holds {ascii(member.name)[:200]}, which it does not list: move it away")


def lines_name(name: str) -> str:
    """Return the name of the file that holds one kind of lines."""
    return f"{name}.jsonl"


@contextmanager
def open_export(where: Path) -> Iterator[Export]:
    """Open the export in a folder or a tar file. Raises NotFound, Invalid."""
    if where.is_dir():
        yield Export(_Folder(where))
        return
    if not os.path.lexists(where):
        raise NotFound(f"{where} does not exist: give the folder or the .tar file that `loratree export` wrote")
    if where.name in (HEADER, *map(lines_name, FILES)):
        raise Invalid(f"{where} is one file of an export: give its folder, {where.absolute().parent}")
    yield Export(_Tar(where))


class _Folder:
    """An export in a folder. A link is refused, because it could lead to any file of this machine."""

    def __init__(self, where: Path) -> None:
        self.where = where
        if not os.path.lexists(where / HEADER):
            raise Invalid(f"{where} holds no {HEADER}, which a whole export has: {AGAIN}")
        allowed = {HEADER, BLOBS, *map(lines_name, FILES)}
        if extra := sorted({entry.name for entry in os.scandir(where)} - allowed):
            raise Invalid(f"{where}/{extra[0]} is no part of the export: move it away")

    def open(self, name: str) -> BinaryIO:
        path = self.where / name
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise Invalid(f"{path} cannot be read ({error.strerror}), expected a plain file: {AGAIN}") from error
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise Invalid(f"{path} is not a plain file: {AGAIN}")
        return os.fdopen(handle, "rb")

    def blobs(self) -> Iterator[Member]:
        if not os.path.lexists(self.where / BLOBS):
            return
        for kind in _sort_entries(self.where / BLOBS, self.where):
            for prefix in _sort_entries(self.where / BLOBS / kind.name, self.where):
                for entry in _sort_entries(Path(prefix.path), self.where):
                    if not entry.is_file(follow_symlinks=False):
                        raise Invalid(f"{entry.path} is not a plain file: {AGAIN}")
                    name = f"{BLOBS}/{kind.name}/{prefix.name}/{entry.name}"
                    yield Member(name, entry.stat(follow_symlinks=False).st_size, partial(self.open, name))


def _sort_entries(folder: Path, where: Path) -> list["os.DirEntry[str]"]:
    if folder.is_symlink() or not folder.is_dir():
        raise Invalid(f"{folder} is no part of the export in {where}: move it away")
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


class _Tar:
    """An export in a tar file without extensions; members are read in place and never extracted."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._files: dict[str, Member] = {}
        last = ""
        for member in self._list_members():
            last = member.name
            if not member.name.startswith(f"{BLOBS}/"):
                if member.name in self._files or member.name not in {HEADER, *map(lines_name, FILES)}:
                    raise Invalid(f"{where} holds {ascii(member.name)[:200]}, which is no part of an export: {AGAIN}")
                self._files[member.name] = member
        if last != HEADER:
            raise Invalid(f"{where} does not end with {HEADER}, which a whole export does: {AGAIN}")

    def open(self, name: str) -> BinaryIO:
        if name not in self._files:
            raise Invalid(f"{self.where} holds no {name}: {AGAIN}")
        return self._files[name].open()

    def blobs(self) -> Iterator[Member]:
        before = ""
        for member in self._list_members():
            if member.name.startswith(f"{BLOBS}/"):
                if member.name <= before:
                    raise Invalid(f"{self.where} holds {ascii(member.name)[:200]} twice or out of order: {AGAIN}")
                before = member.name
                yield member

    def _list_members(self) -> Iterator[Member]:
        """Yield each member, using only its own header: tarfile would read an extension of any size into memory."""
        try:
            with open_plain(self.where, remedy=AGAIN) as stream:
                end, start = stream.seek(0, io.SEEK_END), 0
                while member := self._read_header(stream, start):
                    if start + _BLOCK + member.size > end:
                        raise Invalid(f"{self.where} is cut off in {member.name}: {AGAIN}")
                    yield Member(member.name, member.size, partial(_slice_of, self.where, start + _BLOCK, member.size))
                    start += _BLOCK + -(-member.size // _BLOCK) * _BLOCK
        except OSError as error:
            raise Invalid(f"{self.where} cannot be read ({error.strerror}): {AGAIN}") from error

    def _read_header(self, stream: BinaryIO, start: int) -> tarfile.TarInfo | None:
        """Return the header at `start`, or None at the end of the archive."""
        stream.seek(start)
        block = stream.read(_BLOCK)
        if block == bytes(_BLOCK):
            return None
        try:
            member = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.TarError, ValueError) as error:
            if block.startswith(_GZIP):
                raise Invalid(f"{self.where} is compressed: unpack it by gunzip, and import the .tar file") from error
            raise Invalid(f"{self.where} is not a whole tar file ({error}): {AGAIN}") from error
        if member.type != tarfile.REGTYPE or member.size < 0:
            raise Invalid(f"{self.where} holds {ascii(member.name)[:200]}, not a plain file: {AGAIN}")
        return member


def _slice_of(path: Path, start: int, size: int) -> BinaryIO:
    stream = open_plain(path, remedy=AGAIN)
    stream.seek(start)
    return cast("BinaryIO", io.BufferedReader(_Slice(stream, size)))


class _Slice(io.RawIOBase):
    """The next `size` bytes of a file, from its current position."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._left = stream, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._stream.read(min(len(buffer), self._left))
        buffer[: len(chunk)] = chunk
        self._left -= len(chunk)
        return len(chunk)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Raw(io.RawIOBase):
    """A hashed stream in the form that BufferedReader needs."""

    def __init__(self, stream: Hashed) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._stream.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)
