"""A read that fails names the file, wherever the file is read."""

import io
from pathlib import Path

import pytest

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.core.digests import digest_stream
from loratree_registry.disk.plain_files import open_plain, read_plain
from loratree_registry.errors import Invalid, LoratreeError, Unavailable
from loratree_registry.workspace.adapter_directory import read_adapter_directory
from loratree_registry.workspace.fetch import copy_fetched, open_fetched
from tests.registry.material import WEIGHTS, Material, break_reads, sha256


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def test_a_file_is_read_whole_in_pieces_and_from_a_place(file: Path) -> None:
    with open_plain(file, remedy="") as stream:
        assert (stream.read(3), stream.seek(1), stream.read()) == (b"con", 1, b"ontent")
    with open_plain(file, remedy="") as stream:
        assert digest_stream(stream) == (sha256(b"content"), 7)


@pytest.mark.parametrize("size", [1, 10, 1024**2, -1])
def test_a_plain_file_that_cannot_be_read_is_named(file: Path, size: int) -> None:
    break_reads(file)
    with open_plain(file, remedy="") as stream, pytest.raises(Invalid, match=rf"^{file} cannot be read: Input/output"):
        stream.read(size)
    with pytest.raises(Invalid, match=rf"^{file} cannot be read: Input/output"):
        read_plain(file, limit=10, remedy="")


def test_a_fetched_file_that_cannot_be_read_or_is_gone_is_named(file: Path, tmp_path: Path) -> None:
    break_reads(file)
    expected = rf"^{file} cannot be read: Input/output"
    with open_fetched(file) as stream, pytest.raises(Unavailable, match=expected):
        digest_stream(stream)
    with pytest.raises(Unavailable, match=expected):
        copy_fetched(file, tmp_path / "copy")
    file.unlink()
    with pytest.raises(Unavailable, match=rf"^{file} was removed by a collection .* run the same command again"):
        open_fetched(file)


def test_a_blob_that_cannot_be_read_is_named_with_the_setting_that_moves_it(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path / "blobs")
    digest = sha256(b"")  # what breaks reads has no size, and a blob of another size is not read
    store.put(digest, 0, io.BytesIO())
    break_reads(store.path(digest))
    expected = rf"^{store.path(digest)} cannot be read: Input/output error; check the disk, or set LORATREE_BLOBS"
    with store.open(digest) as stream, pytest.raises(Unavailable, match=expected):
        stream.read()
    with pytest.raises(LoratreeError, match=expected):
        store.put(digest, 0, io.BytesIO())


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
def test_an_adapters_file_that_cannot_be_read_is_named(tmp_path: Path, material: Material, name: str) -> None:
    (tmp_path / WEIGHTS).write_bytes(material.rank4.weights)
    (tmp_path / "adapter_config.json").write_text("{}")
    break_reads(tmp_path / name)
    with pytest.raises(Invalid, match=rf"^{tmp_path / name} cannot be read: Input/output error"):
        read_adapter_directory(tmp_path)
