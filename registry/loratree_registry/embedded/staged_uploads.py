"""Bytes on their way in through the service: a folder an upload, a file a part, shared by a server's workers."""

import fcntl
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from typing_extensions import override

from loratree_registry.blobs.store import PART, Transfer
from loratree_registry.blobs.verified import check_announced
from loratree_registry.core.digests import digest_json
from loratree_registry.core.uploads import LIFETIME_S, Part, Upload, Uploads, unknown_upload
from loratree_registry.disk.disk_errors import disk_errors
from loratree_registry.errors import Conflict, Invalid, listed

MAX_PARTS: Final = 10_000  # as S3 has it
_ID = re.compile(r"[0-9a-f]{32}")
_ANNOUNCED = "announced"


class Store(Protocol):
    """What takes an upload that is whole: Registry.upload."""

    def __call__(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        """Verifies and stores a stream."""
        ...


class StagedUploads(Uploads):
    """Uploads in the folder `root`, which are stored by `store` once they are whole.

    An upload is a folder: `announced` from its beginning, `part-N` for each part that is there whole. A part arrives
    under a name of its own and is renamed, the last one sent counts; whoever completes the upload holds `announced`,
    which is never replaced, locked, which a killed worker does no longer. So workers need nothing else between them.
    """

    def __init__(self, root: Path, store: Store) -> None:
        self.root, self._store = root, store

    @override
    def begin(self, sha256: str, size: int) -> Upload:
        """See Uploads.begin. Drops the uploads that were left a day ago."""
        check_announced(sha256, size)
        if size > PART * MAX_PARTS:
            raise Invalid(f"an upload holds at most {PART * MAX_PARTS} bytes, {sha256} has {size}")
        name = secrets.token_hex(16) if size <= PART else _name_of(sha256, size)
        with self._disk(size):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            expire(self.root, before=datetime.now(UTC) - timedelta(seconds=LIFETIME_S))
            folder = self.root / name
            folder.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileExistsError), _written(folder / _ANNOUNCED, replace=False) as file:
                file.write(json.dumps([sha256, size]).encode())
        return self.find(name)

    @override
    def find(self, id: str) -> Upload:
        transfer = self._transfer(id)
        there = {number for number in range(1, transfer.parts + 1) if self._part(id, number).exists()}
        left = next((number for number in range(1, transfer.parts + 1) if number not in there), None)
        return Upload(
            id=id,
            sha256=transfer.digest,
            size=transfer.size,
            part_size=PART,
            parts=transfer.parts,
            arrived=sorted(there),
            next=self.part(id, left) if left else None,
        )

    @override
    def part(self, id: str, number: int) -> Part:
        length = self.length(id, number)
        return Part(number=number, url=f"/v1/uploads/{id}/parts/{number}", headers={"Content-Length": str(length)})

    def length(self, id: str, number: int) -> int:  # noqa: A002 - the field's name
        """How many bytes a part has. Raises NotFound, Invalid."""
        transfer = self._transfer(id)
        if not 1 <= number <= transfer.parts:
            raise Invalid(f"upload {id} has no part {number}: expected 1 to {transfer.parts}")
        return min(PART, transfer.size - PART * (number - 1))

    @contextmanager
    def receive(self, id: str, number: int) -> Iterator["Arriving"]:  # noqa: A002 - the field's name
        """Takes a part's bytes; on any failure, or where they are too few, nothing of them is kept."""
        length = self.length(id, number)
        with self._disk(length), _written(self._part(id, number)) as file:
            yield Arriving(file, length)
            if file.tell() < length:
                raise Invalid(
                    f"the content sent as part {number} has {file.tell()} bytes, {length} were announced: send it again"
                )

    @override
    def complete(self, upload: Upload) -> None:
        """See Uploads.complete. Where the store cannot take it now, it is kept and can be completed later."""
        with self._locked(upload.id) as transfer:
            paths = [self._part(upload.id, number) for number in range(1, transfer.parts + 1)]
            if missing := [str(number) for number, path in enumerate(paths, 1) if not path.exists()]:
                raise Conflict(f"upload {upload.id} misses the parts {listed(missing)}: send them, then complete it")
            try:
                with io.BufferedReader(_Joined(paths)) as stream:
                    self._store(stream, sha256=transfer.digest, size=transfer.size)
            except Invalid:
                _remove(self._folder(upload.id))
                raise
            _remove(self._folder(upload.id))

    @override
    def give_up(self, id: str) -> None:
        with self._locked(id):
            _remove(self._folder(id))

    def _transfer(self, id: str) -> Transfer:  # noqa: A002 - the field's name
        try:
            sha256, size = json.loads((self._folder(id) / _ANNOUNCED).read_text())
        except (FileNotFoundError, ValueError) as error:
            raise unknown_upload(id) from error
        return Transfer(id=id, digest=sha256, size=size)

    @contextmanager
    def _locked(self, id: str) -> Iterator[Transfer]:  # noqa: A002 - the field's name
        """Holds an upload for the one caller that ends it. Raises Conflict where another does."""
        transfer = self._transfer(id)
        try:
            with _lock(self._folder(id)):
                yield transfer
        except FileNotFoundError as error:
            raise unknown_upload(id) from error
        except BlockingIOError as error:
            raise Conflict(f"upload {id} is being completed by another request: wait") from error

    def _folder(self, id: str) -> Path:  # noqa: A002 - the field's name
        if not _ID.fullmatch(id):
            raise unknown_upload(id)
        return self.root / id

    def _part(self, id: str, number: int) -> Path:  # noqa: A002 - the field's name
        return self._folder(id) / f"part-{number}"

    def _disk(self, needs: int) -> AbstractContextManager[None]:
        return disk_errors(self.root, "LORATREE_HOME", needs=needs)


def expire(root: Path, *, before: datetime, dry_run: bool = False) -> list[str]:
    """Removes the uploads that began, or got a part, before a moment, and returns their names."""
    found = []
    with disk_errors(root, "LORATREE_HOME"):
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            with suppress(FileNotFoundError):  # another worker was first
                if folder.stat().st_mtime < before.timestamp() and not _completing(folder):
                    found.append(folder.name)
                    if not dry_run:
                        shutil.rmtree(folder)
    return found


def _completing(folder: Path) -> bool:
    try:
        with suppress(FileNotFoundError), _lock(folder):
            return False
    except BlockingIOError:
        return True
    return False  # a kill left it without what was announced


class Arriving:
    """A part while it is received."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file, self._length = file, length

    def write(self, chunk: bytes) -> None:
        """Appends `chunk`. Raises Invalid where that would be more than was announced."""
        if self._file.tell() + len(chunk) > self._length:
            raise Invalid(f"the content sent is longer than the {self._length} bytes announced: announce its size")
        self._file.write(chunk)


class _Joined(io.RawIOBase):
    """The bytes of several files, one behind the other."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = iter(paths)
        self._file: BinaryIO = io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (chunk := self._file.read(len(buffer))) and (path := next(self._paths, None)):
            self._file.close()
            self._file = path.open("rb")
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._file.close()
        super().close()


def _remove(folder: Path) -> None:
    """Removes an upload; what another client is sending of it at this moment is left, and expires."""
    shutil.rmtree(folder, ignore_errors=True)


def _name_of(sha256: str, size: int) -> str:
    """The id of an upload of several parts: the same for whoever sends the same bytes, so that it can be resumed."""
    return digest_json([sha256, size])[-32:]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds an upload's lock. Raises FileNotFoundError where it has ended, BlockingIOError where another holds it."""
    with (folder / _ANNOUNCED).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), (folder / _ANNOUNCED).stat()):
            raise FileNotFoundError(f"{folder} ended, and was begun anew, before it was locked")
        yield


@contextmanager
def _written(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """A file that is at `path` once it is whole, and nowhere on any failure, of which FileExistsError may be one."""
    temporary = path.with_name(f"arriving-{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield file
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
