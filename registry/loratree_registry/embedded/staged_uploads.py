"""Uploads whose parts the HTTP server receives into a folder, and then passes to Registry.upload.

Only `api/` uses StagedUploads. It stands here because `housekeeping/` removes its leftovers too, through `expire`.
"""

import fcntl
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from typing_extensions import override

from loratree_registry.blobs.store import PART, Transfer
from loratree_registry.blobs.verified import check_announced
from loratree_registry.core.digests import digest_json
from loratree_registry.core.text import counted
from loratree_registry.core.uploads import LIFETIME_S, Part, Upload, Uploads, unknown_upload
from loratree_registry.disk.disk_errors import disk_errors
from loratree_registry.disk.plain_files import open_named
from loratree_registry.disk.private import make_private, private_opener
from loratree_registry.errors import Conflict, Invalid, NotFound, Unavailable, listed

MAX_PARTS: Final = 10_000  # S3's limit too, so that a base that fits into one registry fits into another
_ID = re.compile(r"[0-9a-f]{32}")
_ANNOUNCED = "announced"
_SETTING: Final = "LORATREE_HOME"
_TRIES: Final = 5  # to begin an upload while others end one of the same bytes


class StoreUpload(Protocol):
    """A function that stores a complete upload: Registry.upload."""

    def __call__(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        """Verify and store a stream."""
        ...


class StagedUploads(Uploads):
    """Uploads in the folder `root`; `store` stores an upload when it is complete.

    An upload is a folder: the file `announced` from its beginning, and `part-N` for each part that arrived whole. A
    part arrives under a temporary name and is then renamed, so the last one sent counts. The worker that completes the
    upload locks `announced`, which is never replaced; a kill releases the lock. So workers share only the folder.
    """

    def __init__(self, root: Path, store: StoreUpload) -> None:
        self.root, self._store = root, store

    @override
    def begin(self, sha256: str, size: int) -> Upload:
        """Begin or resume an upload. See Uploads.begin; the server drops idle ones hourly, `expire` says how."""
        check_announced(sha256, size)
        if size > PART * MAX_PARTS:
            raise Invalid(f"an upload holds at most {PART * MAX_PARTS} bytes, {sha256} has {size}")
        upload_id = secrets.token_hex(16) if size <= PART else _choose_id(sha256, size)
        with disk_errors(self.root, _SETTING, needs=size):
            make_private(self.root)
        for _ in range(_TRIES):
            with suppress(NotFound):  # another client has just ended an upload of the same bytes
                self._announce(upload_id, sha256, size)
                return self.find(upload_id)
        raise unknown_upload(upload_id)

    def _announce(self, id: str, sha256: str, size: int) -> None:  # noqa: A002 - the field's name
        """Make an upload's folder and its announcement, if they are not there. Raises NotFound."""
        with self._catch_errors(id, size):
            folder = self.root / id
            _expire(folder, before=datetime.now(UTC) - timedelta(seconds=LIFETIME_S))  # this one, not all of them
            folder.mkdir(mode=0o700, exist_ok=True)
            with suppress(FileExistsError), _write_whole(folder / _ANNOUNCED, replace=False) as file:
                file.write(json.dumps([sha256, size]).encode())

    @override
    def find(self, id: str) -> Upload:
        transfer = self._read_transfer(id)
        arrived = {number for number in range(1, transfer.parts + 1) if self._path_of(id, number).exists()}
        missing = next((number for number in range(1, transfer.parts + 1) if number not in arrived), None)
        return Upload(
            id=id,
            sha256=transfer.digest,
            size=transfer.size,
            part_size=PART,
            parts=transfer.parts,
            arrived=sorted(arrived),
            next=self.part(id, missing) if missing else None,
        )

    @override
    def part(self, id: str, number: int) -> Part:
        length = self.length(id, number)
        return Part(number=number, url=f"/v1/uploads/{id}/parts/{number}", headers={"Content-Length": str(length)})

    def length(self, id: str, number: int) -> int:  # noqa: A002 - the field's name
        """Return the size of a part in bytes. Raises NotFound, Invalid."""
        transfer = self._read_transfer(id)
        if not 1 <= number <= transfer.parts:
            raise NotFound(f"upload {id} has no part {number}: expected 1 to {transfer.parts}")
        return min(PART, transfer.size - PART * (number - 1))

    @contextmanager
    def receive(self, id: str, number: int) -> Iterator["Arriving"]:  # noqa: A002 - the field's name
        """Receive a part's bytes; after a failure, or if bytes are missing, the part is discarded.

        Raises NotFound if the upload has ended, also while the part arrives.
        """
        length = self.length(id, number)
        with self._catch_errors(id, length), _write_whole(self._path_of(id, number)) as file:
            yield Arriving(file, length)
            if file.tell() < length:
                raise Invalid(
                    f"the content sent as part {number} has {counted(file.tell(), 'byte')}, announced were {length}: "
                    "send it again"
                )

    @override
    def complete(self, upload: Upload) -> None:
        """Store an upload; if the store cannot take it now, it can be completed later. See Uploads.complete."""
        with self._lock_upload(upload.id) as transfer:
            paths = [self._path_of(upload.id, number) for number in range(1, transfer.parts + 1)]
            if missing := [str(number) for number, path in enumerate(paths, 1) if not path.exists()]:
                raise Conflict(f"upload {upload.id} misses the parts {listed(missing)}: send them, then complete it")
            try:
                with io.BufferedReader(_Joined(paths)) as stream:
                    self._store(stream, sha256=transfer.digest, size=transfer.size)
            except Invalid:
                _remove(self._folder_of(upload.id))
                raise
            _remove(self._folder_of(upload.id))

    @override
    def give_up(self, id: str) -> None:
        with self._lock_upload(id):
            _remove(self._folder_of(id))

    def _read_transfer(self, id: str) -> Transfer:  # noqa: A002 - the field's name
        try:
            with self._catch_errors(id):
                sha256, size = json.loads((self._folder_of(id) / _ANNOUNCED).read_text())
        except ValueError as error:
            raise unknown_upload(id) from error
        return Transfer(id=id, digest=sha256, size=size)

    @contextmanager
    def _lock_upload(self, id: str) -> Iterator[Transfer]:  # noqa: A002 - the field's name
        """Lock an upload for the one caller that ends it. Raises Conflict if another caller has the lock."""
        transfer = self._read_transfer(id)
        with self._catch_errors(id):
            try:
                with _lock(self._folder_of(id)):
                    yield transfer
            except BlockingIOError as error:
                raise Conflict(f"upload {id} is being completed by another request: wait") from error

    def _folder_of(self, id: str) -> Path:  # noqa: A002 - the field's name
        if not _ID.fullmatch(id):
            raise unknown_upload(id)
        return self.root / id

    def _path_of(self, id: str, number: int) -> Path:  # noqa: A002 - the field's name
        return self._folder_of(id) / f"part-{number}"

    @contextmanager
    def _catch_errors(self, id: str, needs: int = 0) -> Iterator[None]:  # noqa: A002 - the field's name
        """Turn an OSError into Unavailable, or into NotFound if another request has removed the upload."""
        with disk_errors(self.root, _SETTING, needs=needs):
            try:
                yield
            except FileNotFoundError as error:
                raise unknown_upload(id) from error


def expire(root: Path, *, before: datetime, dry_run: bool = False) -> list[str]:
    """Remove the uploads that got nothing since `before`, and return their names.

    An upload is locked while it is checked, but not while it is removed. If a client completes it in between, the parts
    vanish while `complete` reads them. That is harmless: `complete` stores only bytes with the announced digest. If a
    part is missing, `complete` raises LoratreeError, and the client sends the bytes again.
    """
    with disk_errors(root, _SETTING):
        folders = sorted(root.iterdir()) if root.is_dir() else []
        return [folder.name for folder in folders if _expire(folder, before=before, dry_run=dry_run)]


def _expire(folder: Path, *, before: datetime, dry_run: bool = False) -> bool:
    with suppress(FileNotFoundError):  # another worker removed it
        if folder.stat().st_mtime < before.timestamp() and not _is_completing(folder):
            if not dry_run:
                shutil.rmtree(folder)
            return True
    return False


def _is_completing(folder: Path) -> bool:
    try:
        with suppress(FileNotFoundError), _lock(folder):
            return False
    except BlockingIOError:
        return True
    return False  # a kill left the folder without `announced`


class Arriving:
    """A part that is being received."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file, self._length = file, length

    def write(self, chunk: bytes) -> None:
        """Append `chunk`. Raises Invalid if the part would be longer than announced."""
        if self._file.tell() + len(chunk) > self._length:
            raise Invalid(f"the content sent is longer than the {self._length} bytes announced: announce its size")
        self._file.write(chunk)


class _Joined(io.RawIOBase):
    """The bytes of several files, one after another."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = iter(paths)
        self._file: BinaryIO = io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not (chunk := self._file.read(len(buffer))) and (path := next(self._paths, None)):
            self._file.close()
            self._file = self._open(path)
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def _open(self, path: Path) -> BinaryIO:
        try:
            return open_named(path, Unavailable)
        except FileNotFoundError as error:
            raise unknown_upload(path.parent.name) from error
        except OSError as error:
            raise Unavailable(f"{path} cannot be read: {error.strerror or error}") from error

    def close(self) -> None:
        self._file.close()
        super().close()


def _remove(folder: Path) -> None:
    """Remove an upload; a part that another client is sending now may stay, and expires."""
    shutil.rmtree(folder, ignore_errors=True)


def _choose_id(sha256: str, size: int) -> str:
    """Return the id of an upload of several parts: equal bytes have equal ids, so that any client can resume it."""
    return digest_json([sha256, size])[-32:]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock an upload. Raises FileNotFoundError if the upload has ended, BlockingIOError if it is locked."""
    with (folder / _ANNOUNCED).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(file.fileno()), (folder / _ANNOUNCED).stat()):
            raise FileNotFoundError(f"{folder} was ended and begun again before it was locked")
        yield


@contextmanager
def _write_whole(path: Path, *, replace: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that appears at `path` only after the block succeeds. Without `replace` raises FileExistsError."""
    temporary = path.with_name(f"arriving-{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb", opener=private_opener) as file:
            yield file
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)
