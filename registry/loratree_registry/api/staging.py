"""Bytes on their way in: one folder an upload, shared by every worker of a server."""

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from loratree_registry.api.bodies import NewUpload
from loratree_registry.blobs.disk import disk_errors
from loratree_registry.blobs.verified import check_announced
from loratree_registry.errors import Conflict, Invalid, NotFound, Unavailable

LIFETIME_S: Final = 24 * 3600
MAX_SIZE: Final = 5 * 1024**3  # what S3 takes in one put
_ID = re.compile(r"[0-9a-f]{32}")


class Staging:
    """Uploads in the folder `root`; each id takes content once and is completed once.

    An upload is a folder: `announced` from its beginning, `arriving` while content is received, `content` once that is
    whole, `claimed` while it is completed. Each step is one atomic file operation, so workers need no other lock.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def begin(self, upload: NewUpload) -> str:
        """Makes an upload and returns its id; drops those that were left a day ago. Raises Invalid, Unavailable."""
        check_announced(upload.sha256, upload.size)
        if upload.size > MAX_SIZE:
            raise Invalid(f"an upload holds at most {MAX_SIZE} bytes, {upload.sha256} has {upload.size}")
        name = secrets.token_hex(16)
        with self._disk(upload.size):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._expire()
            (self.root / name).mkdir(mode=0o700)
            (self.root / name / "announced").write_text(json.dumps([upload.sha256, upload.size]))
        return name

    def announced(self, name: str) -> NewUpload:
        """What was announced for an upload. Raises NotFound."""
        try:
            sha256, size = json.loads((self._folder(name) / "announced").read_text())
        except (FileNotFoundError, ValueError) as error:
            raise _unknown(name) from error
        return NewUpload(sha256=sha256, size=size)

    @contextmanager
    def receive(self, name: str) -> Iterator["Arriving"]:
        """Takes an upload's content; on any failure, or if it is short, nothing of it is kept. Raises Conflict."""
        upload, folder = self.announced(name), self._folder(name)
        if (folder / "content").exists() or (folder / "claimed").exists():
            raise Conflict(f"upload {name} has its content already: complete it, or begin another")
        with self._disk(upload.size), _new_file(folder / "arriving", folder / "content") as file:
            yield Arriving(file, upload)
            if file.tell() < upload.size:
                raise Invalid(f"the content sent has {file.tell()} bytes, {upload.size} were announced: send it again")

    @contextmanager
    def claim(self, name: str) -> Iterator[tuple[NewUpload, BinaryIO]]:
        """Opens the content for the one caller that completes it; afterwards the upload is gone.

        Where the block raises Unavailable, the content is put back, so that completing can be tried again.
        """
        upload, folder = self.announced(name), self._folder(name)
        claimed = folder / "claimed"
        try:
            (folder / "content").rename(claimed)
        except FileNotFoundError as error:
            raise Conflict(
                f"upload {name} cannot be completed: its content was not sent, or another is at it"
            ) from error
        try:
            with claimed.open("rb") as stream:
                yield upload, stream
        except Unavailable:
            claimed.rename(folder / "content")
            raise
        except BaseException:
            shutil.rmtree(folder)
            raise
        shutil.rmtree(folder)

    def _folder(self, name: str) -> Path:
        if not _ID.fullmatch(name):
            raise _unknown(name)
        return self.root / name

    def _disk(self, needs: int) -> AbstractContextManager[None]:
        return disk_errors(self.root, "LORATREE_HOME", needs=needs)

    def _expire(self) -> None:
        oldest = time.time() - LIFETIME_S
        for folder in self.root.iterdir():
            with suppress(FileNotFoundError):  # another worker was first
                if folder.stat().st_mtime < oldest:
                    shutil.rmtree(folder)


class Arriving:
    """The content of an upload while it is received."""

    def __init__(self, file: BinaryIO, upload: NewUpload) -> None:
        self._file, self._size = file, upload.size

    def write(self, chunk: bytes) -> None:
        """Appends `chunk`. Raises Invalid where that would be more than was announced."""
        if self._file.tell() + len(chunk) > self._size:
            raise Invalid(f"the content sent is longer than the {self._size} bytes announced: announce its size")
        self._file.write(chunk)


@contextmanager
def _new_file(part: Path, whole: Path) -> Iterator[BinaryIO]:
    """A file that no other writer has: renamed to `whole` at the end, removed on any failure."""
    try:
        file = part.open("xb")
    except FileExistsError as error:
        raise Conflict("this upload is being sent by another request: wait, or begin another") from error
    try:
        with file:
            yield file
        part.rename(whole)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _unknown(name: str) -> NotFound:
    return NotFound(f"there is no upload {name[:64]!r}: it was completed, refused, or left for a day; begin another")
