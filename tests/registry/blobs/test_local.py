"""What the folder store does to a disk, and what a disk does to it."""

import errno
import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.disk.disk_errors import disk_errors
from loratree_registry.errors import Invalid, Unavailable

from .test_blob_contract import digest_of

CONTENT = b"the bytes of an adapter"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; a user who may not mount runs the test again as root of a name space (see below)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def full_disk_refuses_with_one_sentence_and_keeps_nothing(disk: Path) -> None:
    store = LocalBlobStore(disk / "blobs")
    content = os.urandom(200_000)
    with pytest.raises(Unavailable, match=r"is full: needs 200000 bytes, \d+ are free; .* set LORATREE_BLOBS$"):
        store.put(digest_of(content), len(content), io.BytesIO(content))
    assert files(disk) == []
    assert store.size(digest_of(content)) is None


if os.geteuid() == 0:

    def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing(small_disk: Path) -> None:
        full_disk_refuses_with_one_sentence_and_keeps_nothing(small_disk)

    def test_what_fits_is_stored_after_a_full_disk_refused_more(small_disk: Path) -> None:
        full_disk_refuses_with_one_sentence_and_keeps_nothing(small_disk)
        store = LocalBlobStore(small_disk / "blobs")
        store.put(digest_of(CONTENT), len(CONTENT), io.BytesIO(CONTENT))
        assert store.size(digest_of(CONTENT)) == len(CONTENT)

    def test_a_full_disk_still_accepts_what_it_holds_already(small_disk: Path) -> None:
        store = LocalBlobStore(small_disk)
        content = os.urandom(40_000)
        for _ in range(2):
            store.put(digest_of(content), len(content), io.BytesIO(content))
        assert store.size(digest_of(content)) == len(content)

else:

    def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing() -> None:
        inside = ["unshare", "--user", "--map-root-user", "--mount"]
        done = subprocess.run([*inside, sys.executable, "-m", "pytest", "-q", "-k", "full_disk", __file__])
        assert done.returncode == 0


def test_a_full_disk_says_no_need_that_is_not_known(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match=r"is full: \d+ bytes are free; free some space or set HERE$"),
        disk_errors(tmp_path, "HERE"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_files_and_folders_are_their_owners_alone(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path / "blobs")
    before = os.umask(0)
    try:
        store.put(digest_of(CONTENT), len(CONTENT), io.BytesIO(CONTENT))
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in files(store.root)}
    folders = {stat.S_IMODE(p.stat().st_mode) for p in (store.root, *store.root.rglob("*")) if p.is_dir()}
    assert (modes, folders) == ({0o600}, {0o700})


def test_making_a_store_touches_no_disk(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path / "blobs")
    assert store.size(digest_of(CONTENT)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = LocalBlobStore(tmp_path / "file" / "blobs")
    with pytest.raises(
        Unavailable, match=r"file/blobs is no folder, .* \(Not a directory\): set LORATREE_BLOBS to a folder$"
    ):
        store.put(digest_of(CONTENT), len(CONTENT), io.BytesIO(CONTENT))


def test_something_else_in_a_blobs_place_is_told(tmp_path: Path) -> None:
    digest = digest_of(CONTENT)
    (tmp_path / "sha256" / digest[7:9] / digest[7:]).mkdir(parents=True)
    with pytest.raises(Unavailable, match="Is a directory"):
        LocalBlobStore(tmp_path).put(digest, len(CONTENT), io.BytesIO(CONTENT))


def test_a_writer_that_is_killed_leaves_no_blob(tmp_path: Path) -> None:
    program = f"""
import io, os, signal
from pathlib import Path
from loratree_registry.disk.disk_errors import disk_errors
from loratree_registry.blobs.local import LocalBlobStore

class Killer(io.RawIOBase):
    calls = 0
    def readable(self): return True
    def readinto(self, buffer):
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(buffer)

LocalBlobStore(Path({str(tmp_path)!r})).put("sha256:" + "0" * 64, 10_000_000, Killer())
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    store = LocalBlobStore(tmp_path)
    assert store.size("sha256:" + "0" * 64) is None
    assert [path.parent.name for path in files(tmp_path)] == ["tmp"]


def test_an_interrupted_stream_leaves_no_temporary_file(tmp_path: Path) -> None:
    class Interrupted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalBlobStore(tmp_path).put(digest_of(CONTENT), len(CONTENT), Interrupted())
    assert files(tmp_path) == []


def test_a_disk_that_gives_back_other_bytes_than_were_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        os.truncate(handle, 1)  # what a broken disk does behind the file's back

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable, match="gave back other bytes than were written: check the disk"):
        LocalBlobStore(tmp_path).put(digest_of(CONTENT), len(CONTENT), io.BytesIO(CONTENT))
    assert files(tmp_path) == []


def test_the_bytes_are_synced_before_they_are_named_and_every_folder_of_the_name_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = digest_of(CONTENT)
    name = tmp_path / "sha256" / digest[7:9] / digest[7:]
    synced: list[tuple[Path, bool]] = []
    fsync = os.fsync

    def watch(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink(), name.exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watch)
    LocalBlobStore(tmp_path).put(digest, len(CONTENT), io.BytesIO(CONTENT))
    (written, named), *folders = synced
    assert (written.parent, named) == (tmp_path / "tmp", False)
    assert folders == [(name.parent, True), (name.parent.parent, True), (tmp_path, True)]


def test_one_byte_where_none_was_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="got more"):
        LocalBlobStore(tmp_path).put(digest_of(b""), 0, io.BytesIO(b"x"))


def aged(path: Path, hours: int) -> Path:
    then = (datetime.now(UTC) - timedelta(hours=hours)).timestamp()
    os.utime(path, (then, then))
    return path


def test_a_sweep_takes_old_temporary_files_and_neither_new_ones_nor_blobs(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    store.put(digest_of(CONTENT), len(CONTENT), io.BytesIO(CONTENT))
    [blob] = files(tmp_path)
    old, new = tmp_path / "tmp" / "old", tmp_path / "tmp" / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    for path in (blob, old):
        aged(path, 48)
    day_ago = datetime.now(UTC) - timedelta(days=1)
    assert store.sweep(before=day_ago, dry_run=True) == ["tmp/old"]
    assert old.exists()
    assert store.sweep(before=day_ago) == ["tmp/old"]
    assert set(files(tmp_path)) == {blob, new}


def test_what_is_no_blob_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "sha256" / "ab").mkdir(parents=True)
    (tmp_path / "sha256" / "ab" / ".DS_Store").write_text("")
    assert list(LocalBlobStore(tmp_path).list_blobs()) == []
