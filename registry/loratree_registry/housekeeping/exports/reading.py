"""Where an export is read from: a folder or a tar file, neither of which is trusted."""

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
Open = Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Member:
    """A file that is there: its name, its size in bytes, and what opens it."""

    name: str
    size: int
    open: Open


class Source(Protocol):
    """The files of an export, by the names that the format gives them; nothing else of what is there is opened."""

    where: Path

    def open(self, name: str) -> BinaryIO:
        """Opens one file, each time anew, which is the caller's to close. Raises Invalid."""
        ...

    def blobs(self) -> Iterator[Member]:
        """What is there under blobs/, in the order of names. Raises Invalid where it is not in order, or no file."""
        ...


class Export:
    """An export whose header was read: it is whole, as far as its header goes."""

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
        """The records of one of FILES, and at the end the check that the file has its digest. Raises Invalid."""
        file = self._files[lines_name(name)]
        with self._source.open(file.name) as stream:
            hashed = Hashed(stream)
            buffered = io.BufferedReader(_Raw(hashed))
            yield from read_stream(cast("BinaryIO", buffered), FILES[name], f"{self._source.where}/{file.name}")
        if (hashed.digest, hashed.count) != (file.sha256, file.size):
            raise Invalid(f"{self._source.where}/{file.name} is not the file that the header lists: {AGAIN}")

    def blobs(self) -> Iterator[tuple[BlobLine, Open]]:
        """The blobs that are listed, and what opens each; their bytes are not looked at.

        Raises Invalid where one is not there, has another size, or where there is something else.
        """
        there = self._source.blobs()
        for blob in self.lines("blobs"):
            name, found = blob_name(blob.sha256), next(there, None)
            if found is None or found.name > name:
                raise Invalid(f"{self._source.where}/{name} is listed and not there: {AGAIN}")
            if found.name < name:
                raise self._foreign(found)
            if found.size != blob.size:
                raise Invalid(f"{self._source.where}/{name} has {found.size} bytes, expected {blob.size}: {AGAIN}")
            yield blob, found.open
        if (extra := next(there, None)) is not None:
            raise self._foreign(extra)

    def _foreign(self, found: Member) -> Invalid:
        return Invalid(f"{self._source.where} holds {ascii(found.name)[:200]}, which it does not list: remove it")


def lines_name(name: str) -> str:
    """The file of one kind of lines."""
    return f"{name}.jsonl"


@contextmanager
def open_export(where: Path) -> Iterator[Export]:
    """Opens the export in a folder or a tar file. Raises NotFound, Invalid."""
    if where.is_dir():
        yield Export(_Folder(where))
        return
    if not os.path.lexists(where):
        raise NotFound(f"{where} does not exist: give the folder or the .tar file that `loratree export` wrote")
    yield Export(_Tar(where))


class _Folder:
    """An export in a folder, in which nothing is a link."""

    def __init__(self, where: Path) -> None:
        self.where = where
        if not os.path.lexists(where / HEADER):
            raise Invalid(f"{where} holds no {HEADER}, which a whole export has: {AGAIN}")
        allowed = {HEADER, BLOBS, *map(lines_name, FILES)}
        if extra := sorted({entry.name for entry in os.scandir(where)} - allowed):
            raise Invalid(f"{where}/{extra[0]} is no part of the export: remove it")

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
        for kind in _sorted(self.where / BLOBS, self.where):
            for prefix in _sorted(self.where / BLOBS / kind.name, self.where):
                for entry in _sorted(Path(prefix.path), self.where):
                    if not entry.is_file(follow_symlinks=False):
                        raise Invalid(f"{entry.path} is not a plain file: {AGAIN}")
                    name = f"{BLOBS}/{kind.name}/{prefix.name}/{entry.name}"
                    yield Member(name, entry.stat(follow_symlinks=False).st_size, partial(self.open, name))


def _sorted(folder: Path, where: Path) -> list["os.DirEntry[str]"]:
    if folder.is_symlink() or not folder.is_dir():
        raise Invalid(f"{folder} is no part of the export in {where}: remove it")
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


class _Tar:
    """An export in a tar file without extensions; its members are looked through, and none is ever extracted."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self._files: dict[str, Member] = {}
        last = ""
        for member in self._members():
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
        for member in self._members():
            if member.name.startswith(f"{BLOBS}/"):
                if member.name <= before:
                    raise Invalid(f"{self.where} holds {ascii(member.name)[:200]} twice or out of order: {AGAIN}")
                before = member.name
                yield member

    def _members(self) -> Iterator[Member]:
        """Each member, by its own header alone: tarfile would read an extension of any size into memory."""
        try:
            with self.where.open("rb") as stream:
                end, start = stream.seek(0, io.SEEK_END), 0
                while member := self._member(stream, start):
                    if start + _BLOCK + member.size > end:
                        raise Invalid(f"{self.where} is cut off in {member.name}: {AGAIN}")
                    yield Member(member.name, member.size, partial(_opened, self.where, start + _BLOCK, member.size))
                    start += _BLOCK + -(-member.size // _BLOCK) * _BLOCK
        except OSError as error:
            raise Invalid(f"{self.where} cannot be read ({error.strerror}): {AGAIN}") from error

    def _member(self, stream: BinaryIO, start: int) -> tarfile.TarInfo | None:
        """The header that starts there; None at the end."""
        stream.seek(start)
        block = stream.read(_BLOCK)
        if block == bytes(_BLOCK):
            return None
        try:
            member = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise Invalid(f"{self.where} is not a whole tar file ({error}): {AGAIN}") from error
        if member.type != tarfile.REGTYPE or member.size < 0:
            raise Invalid(f"{self.where} holds {ascii(member.name)[:200]}, not a plain file: {AGAIN}")
        return member


def _opened(path: Path, start: int, size: int) -> BinaryIO:
    stream = path.open("rb")
    stream.seek(start)
    return cast("BinaryIO", io.BufferedReader(_Slice(stream, size)))


class _Slice(io.RawIOBase):
    """`size` bytes of a file from where it stands."""

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
    """A hashed stream as one that can be buffered."""

    def __init__(self, stream: Hashed) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self._stream.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)
