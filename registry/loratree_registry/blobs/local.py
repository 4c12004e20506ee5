"""Blobs in a folder, each one in root/sha256/ab/<64 hexadecimal digits>."""

import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from loratree_registry.blobs.store import BlobStore, ReadBack, StoredBlob
from loratree_registry.blobs.verified import check_announced, drain, is_intact, verified
from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.core.paths import is_digest
from loratree_registry.core.times import from_seconds
from loratree_registry.disk.disk_errors import disk_errors, sync
from loratree_registry.disk.plain_files import open_named
from loratree_registry.disk.private import make_private
from loratree_registry.errors import NotFound, Unavailable

SETTING = "LORATREE_BLOBS"


class LocalBlobStore(BlobStore):
    """A blob store in the folder `root`, private to its owner (files 0600, folders 0700). The first put creates it."""

    def __init__(self, root: Path, *, setting: str = SETTING) -> None:
        """`setting` is the name of the setting that moves `root`, for error messages."""
        self.root, self.setting = root, setting

    @override
    def put(self, digest: str, size: int, stream: BinaryIO, *, read_back: ReadBack | None = None) -> None:
        """Store `stream`: write a temporary file, fsync, read back, rename, fsync the folder. See BlobStore.put."""
        check_announced(digest, size)
        with disk_errors(self.root, self.setting, needs=size):
            if self._has_intact(digest, size, read_back):
                drain(verified(stream, digest, size))
            else:
                self._store(digest, size, stream, read_back)

    @override
    @contextmanager
    def open(self, digest: str) -> Iterator[BinaryIO]:
        """Open a blob for reading, as stored. Raises NotFound, Unavailable."""
        try:
            stream = open_named(self.path(digest), self._damage)
        except FileNotFoundError as error:
            raise NotFound(f"{self.root} holds no blob {digest}") from error
        except OSError as error:
            raise Unavailable(f"{self.root} cannot read the blob {digest}: {error.strerror}") from error
        with stream:
            yield stream

    @override
    def size(self, digest: str) -> int | None:
        """Return the stored size in bytes, or None if there is no such blob. Raises Unavailable."""
        with disk_errors(self.root, self.setting):
            try:
                return self.path(digest).stat().st_size
            except FileNotFoundError:
                return None

    @override
    def delete(self, digest: str) -> None:
        """Remove a blob; a missing blob is no error. Raises Unavailable."""
        with disk_errors(self.root, self.setting):
            self.path(digest).unlink(missing_ok=True)

    @override
    def list_blobs(self, *, after: str | None = None) -> Iterator[StoredBlob]:
        """Yield every blob; of the 256 folders, read one at a time. See BlobStore.list_blobs."""
        first = (after or "").removeprefix(DIGEST_PREFIX)
        for folder in self._list(self.root / "sha256"):
            if folder.name >= first[:2]:
                yield from (blob for path in self._list(folder) if path.name > first if (blob := self._stat(path)))

    @override
    def sweep(self, *, before: datetime, keep: Collection[str] = (), dry_run: bool = False) -> list[str]:
        """Remove the temporary files of killed writers; a file that is still being written has a recent time."""
        with disk_errors(self.root, self.setting):
            old = [path for path in self._list(self.root / "tmp") if _read_modified(path, before) < before]
            old = [path for path in old if f"tmp/{path.name}" not in keep]
            for path in old:
                if not dry_run:
                    path.unlink(missing_ok=True)
        return [f"tmp/{path.name}" for path in old]

    @override
    def close(self) -> None:
        """Do nothing: a folder needs no connection."""

    def path(self, digest: str) -> Path:
        """Return the path of a blob, also if the blob does not exist."""
        check_announced(digest, 0)
        name = digest.removeprefix(DIGEST_PREFIX)
        return self.root / "sha256" / name[:2] / name

    def _damage(self, sentence: str) -> Unavailable:
        return Unavailable(f"{sentence}; check the disk, or set {self.setting}")

    def _list(self, folder: Path) -> list[Path]:
        with disk_errors(self.root, self.setting):
            return sorted(folder.iterdir()) if folder.is_dir() else []

    def _stat(self, path: Path) -> StoredBlob | None:
        """Return the blob at `path`, or None if the file is no blob or was removed while its folder was read."""
        digest = DIGEST_PREFIX + path.name
        with disk_errors(self.root, self.setting), suppress(FileNotFoundError):
            status = path.stat()
            if is_digest(digest):
                return StoredBlob(digest, status.st_size, from_seconds(status.st_mtime))
        return None

    def _has_intact(self, digest: str, size: int, read_back: ReadBack | None) -> bool:
        """Return whether the blob is stored and intact; its name alone proves nothing."""
        path = self.path(digest)
        try:
            with open_named(path, self._damage) as stream:
                if os.fstat(stream.fileno()).st_size != size:
                    return False
                return is_intact(stream, digest, size, read_back)
        except FileNotFoundError:
            return False

    def _store(self, digest: str, size: int, stream: BinaryIO, read_back: ReadBack | None) -> None:
        with self._create_temporary() as temporary:
            with temporary.open("wb") as file:
                for chunk in verified(stream, digest, size):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            with open_named(temporary, self._damage) as file:
                returned = is_intact(file, digest, size, read_back)
            if not returned:
                raise Unavailable(f"the disk of {self.root} gave back other bytes than were written: check the disk")
            self._reveal(temporary, self.path(digest))

    @contextmanager
    def _create_temporary(self) -> Iterator[Path]:
        """Create a file in root/tmp, so that renaming it stays within one file system; remove it after the block."""
        folder = self.root / "tmp"
        make_private(self.root)
        folder.mkdir(mode=0o700, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _reveal(self, temporary: Path, path: Path) -> None:
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(mode=0o700, exist_ok=True)
        temporary.replace(path)
        for folder in (path.parent, path.parent.parent, self.root):
            sync(folder)


def _read_modified(path: Path, gone: datetime) -> datetime:
    """Return when a file was last written, or `gone` if it was removed while its folder was read."""
    try:
        return from_seconds(path.stat().st_mtime)
    except FileNotFoundError:
        return gone
