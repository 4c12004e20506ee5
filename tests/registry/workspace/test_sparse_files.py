"""A file whose size or header is wrong is refused before its bytes are read: 96 GiB that take no space on the disk."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loratree_composer.base.manifest import read_base
from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.verified import has_intact
from loratree_registry.core.chain import Chain
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.records import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Submission
from loratree_registry.database import queries
from loratree_registry.database.engine import writing
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.embedded.storage import Storage as Opened
from loratree_registry.errors import Conflict, Corrupt, Invalid, LoratreeError
from loratree_registry.housekeeping.verifying import verify
from loratree_registry.workspace.base_transfer import pull_base, push_base
from loratree_registry.workspace.fetch import fetch, pull
from loratree_registry.workspace.lockfile import Artifact, Lockfile, check_artifact
from loratree_registry.workspace.publish import prepare, publish_directory
from tests.registry.conftest import Storage, embedded_sqlite
from tests.registry.material import Material, publish, sha256

HUGE = 96 * 1024**3
READ = 64 * 1024**2  # bytes that one refusal may read, with the modules that it imports


@contextmanager
def reading_little() -> Iterator[None]:
    """Counts the bytes that this process reads from files."""

    def count() -> int:
        [line] = [line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar")]
        return int(line.split()[1])

    before = count()
    yield
    assert count() - before < READ


@pytest.fixture
def registry(storage: Storage, material: Material) -> Iterator[EmbeddedRegistry]:
    with embedded_sqlite(storage) as opened:
        opened.add_base("tiny", material.base)
        publish(opened, "tiny/a", material.rank4, "base")
        yield opened


@pytest.fixture
def home(storage: Storage) -> Path:
    return storage.folder / "home"


def grow(path: Path, size: int = HUGE) -> Path:
    """Makes a file as long as `size`, without using the disk."""
    with path.open("ab") as file:
        file.truncate(size)
    return path


def sparse_weights(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A safetensors file with a header that is valid in itself; every value is 0 and none is on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return grow(path, 8 + len(text) + end)


FACTORS = {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight": [4, HUGE // 32] for part in "AB"}


def sparse_adapter(folder: Path, material: Material) -> Path:
    folder.mkdir()
    (folder / ADAPTER_CONFIG).write_text(json.dumps(material.rank4.config))
    sparse_weights(folder / ADAPTER_WEIGHTS, FACTORS)
    return folder


def base_folder(folder: Path, material: Material) -> Path:
    folder.mkdir()
    for name, content in material.checkpoint.items():
        (folder / name).write_bytes(content)
    return folder


def test_an_adapter_of_another_shape(
    registry: EmbeddedRegistry, material: Material, tmp_path: Path, home: Path
) -> None:
    folder = sparse_adapter(tmp_path / "adapter", material)
    for refuse in (
        lambda: publish_directory(registry, folder, "tiny/b", parent="base", home=home),
        lambda: prepare(registry, folder, "tiny/b", parent="base", level=None, home=home),
    ):
        with reading_little(), pytest.raises(Invalid, match="other sizes than the base"):
            refuse()


@pytest.mark.parametrize("what", ["a shard", "a grown shard", "a tokenizer"])
def test_a_base_with_a_huge_file(
    registry: EmbeddedRegistry, material: Material, tmp_path: Path, home: Path, what: str
) -> None:
    folder = base_folder(tmp_path / "base", material)
    if what == "a shard":
        shapes = {p.name: list(p.shape) for p in material.base.parameters} | {"lm_head.weight": [HUGE // 128, 32]}
        sparse_weights(folder / "model.safetensors", shapes)
    else:
        grow(folder / {"a grown shard": "model.safetensors", "a tokenizer": "tokenizer.json"}[what])
    with reading_little(), pytest.raises(Invalid):
        push_base(registry, "tiny", folder)
    if what != "a tokenizer":
        with reading_little(), pytest.raises(Invalid):
            read_base(folder)


def test_a_config_that_is_huge(material: Material, tmp_path: Path) -> None:
    folder = base_folder(tmp_path / "base", material)
    grow(folder / "config.json")
    with reading_little(), pytest.raises(Invalid, match="larger than"):
        read_base(folder)


def test_a_blob_that_grew_where_it_is_stored(registry: EmbeddedRegistry, material: Material, home: Path) -> None:
    file = material.rank4.file
    grow(home / "blobs" / "sha256" / file.sha256[7:9] / file.sha256[7:])
    with reading_little():
        assert not has_intact(registry._blobs, file.sha256, file.size)
        assert registry.damaged_files("tiny/a@1") == [file]
        with pytest.raises(Corrupt):
            fetch(registry, home, "tiny/a@1", file)
        found = verify(Opened(registry._engine, registry._blobs))
        assert [damage.problem for damage in found.damaged] == [f"has {HUGE} bytes"]


def test_a_cached_file_that_grew(material: Material, tmp_path: Path) -> None:
    file, cache = material.rank4.file, LocalBlobStore(tmp_path / "cache")
    path = cache.path(file.sha256)
    path.parent.mkdir(parents=True)
    path.write_bytes(material.rank4.weights)
    assert has_intact(cache, file.sha256, file.size)
    grow(path)
    with reading_little():
        assert not has_intact(cache, file.sha256, file.size)


def test_a_folder_to_pull_into_that_holds_huge_files(
    registry: EmbeddedRegistry, material: Material, tmp_path: Path, home: Path
) -> None:
    pull(registry, home, "tiny/a@1", tmp_path / "out")
    grow(tmp_path / "out" / ADAPTER_WEIGHTS)
    with reading_little(), pytest.raises(Conflict):
        pull(registry, home, "tiny/a@1", tmp_path / "out")
    shutil.copy(tmp_path / "out" / ADAPTER_CONFIG, tmp_path / "saved")
    grow(tmp_path / "out" / ADAPTER_CONFIG)
    with reading_little(), pytest.raises(Conflict):
        pull(registry, home, "tiny/a@1", tmp_path / "out")
    base = base_folder(tmp_path / "base", material)
    push_base(registry, "tiny", base)
    grow(base / "model.safetensors")
    with reading_little(), pytest.raises(Conflict):
        pull_base(registry, home, "tiny", base)


def test_a_composition_with_a_huge_file(tmp_path: Path) -> None:
    contents = {"config.json": b"{}", "model.safetensors": b"x"}
    files = tuple(FileDigest(name, len(content), sha256(content)) for name, content in contents.items())
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    lockfile = Lockfile("tiny", Chain("tiny", sha256(b"base"), ()), Artifact("merge", "float32", files))
    check_artifact(lockfile, tmp_path)
    grow(tmp_path / "model.safetensors")
    with reading_little(), pytest.raises(Invalid, match=f"found {HUGE} bytes"):
        check_artifact(lockfile, tmp_path)


def stored(registry: EmbeddedRegistry, home: Path, make: Callable[[Path], Path], name: str) -> FileDigest:
    """A file in the store that the database calls verified; its digest is made up, as nobody hashes 96 GiB here."""
    made = make(home / "made")
    file = FileDigest(name, made.stat().st_size, sha256(name.encode()))
    place = home / "blobs" / "sha256" / file.sha256[7:9] / file.sha256[7:]
    place.parent.mkdir(parents=True, exist_ok=True)
    made.rename(place)
    with writing(registry._engine) as connection:
        lease = queries.blobs.lease_blob(connection, file.sha256, file.size)
        queries.blobs.record_stored(connection, file.sha256, file.size, lease)
    return file


def test_the_registry_compares_headers_first_too(registry: EmbeddedRegistry, material: Material, home: Path) -> None:
    adapter = stored(registry, home, lambda path: sparse_weights(path, FACTORS), ADAPTER_WEIGHTS)
    found: Any = "explicit"
    submission = Submission(config=material.rank4.config, files=[adapter], parent="base", found=found)
    with reading_little(), pytest.raises(LoratreeError, match="other sizes than the base"):
        registry.publish("tiny/b", submission)
    shapes = {p.name: list(p.shape) for p in material.base.parameters} | {"lm_head.weight": [HUGE // 128, 32]}
    shard = stored(registry, home, lambda path: sparse_weights(path, shapes), "model.safetensors")
    config = stored(registry, home, lambda path: grow(path, 2), "config.json")
    with reading_little(), pytest.raises(Invalid, match=r"lm_head\.weight"):
        registry.store_base("tiny", [config, shard])
