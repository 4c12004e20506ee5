"""Bytes that a collection removes while somebody reads are told apart from bytes that are lost: run it again."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO

import pytest

from loratree_composer.adapters.reader import AdapterReader
from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.core.digests import FileDigest
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import Corrupt, Gone, Invalid, NotUploaded, Unavailable
from loratree_registry.housekeeping.collecting import collect
from loratree_registry.housekeeping.exports.exporting import export
from loratree_registry.remote.registry import RemoteRegistry
from loratree_registry.workspace.fetch import fetch, open_fetched, pull
from tests.registry.conftest import Build, Storage
from tests.registry.housed import House
from tests.registry.material import WEIGHTS, Material, publish, sha256

LAW, MED = "tiny/law", "tiny/medicine"
REMOVED = (
    "were removed by a collection while they were read.*: run the same command again( \\(.+, see the server's log\\))?$"
)


@pytest.fixture(params=["local", "s3"])
def house(request: pytest.FixtureRequest, build: Build, material: Material) -> House:
    return filled(build(blobs=request.param), material)


def filled(house: House, material: Material) -> House:
    house.registry.add_base("tiny", material.base)
    for path, adapter in ((LAW, material.rank4), (MED, material.rank8)):
        publish(house.registry, path, adapter)
    return house


def remove(house: House) -> None:
    """Deletes tiny/law@1, and collects its bytes at once."""
    house.registry.delete(f"{LAW}@1", reason="a test")
    sweep(house)


def sweep(house: House) -> None:
    assert list(collect(house.storage, house.settings.home / "uploads", grace=timedelta(0)))


def lose(house: House) -> None:
    """Loses the bytes of tiny/law@1, which the database still records."""
    house.storage.blobs.delete(house.registry.version(LAW).files[0].sha256)


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_an_export_that_a_collection_overtakes_says_to_run_it_again(house: House, tmp_path: Path, name: str) -> None:
    def overtake(what: str, done: int, _total: int, _unit: str) -> None:
        if what == "copying the stored files" and not done and house.registry.versions(LAW).items:
            remove(house)

    with pytest.raises(Unavailable, match=REMOVED):
        export(house.storage, None, tmp_path / name, progress=overtake)
    assert list(tmp_path.iterdir()) == []
    assert export(house.storage, None, tmp_path / name).counts["versions"] == 1


def test_an_export_of_lost_bytes_still_asks_for_a_backup(house: House, tmp_path: Path) -> None:
    lose(house)
    with pytest.raises(Corrupt, match="the blob store does not hold them: restore it from a backup"):
        export(house.storage, None, tmp_path / "out")


class Overtaken(EmbeddedRegistry):
    """A registry whose file is removed by others right after it was found."""

    remove: Callable[[], None]

    def file(self, ref: str, name: str) -> FileDigest:
        found = super().file(ref, name)
        self.remove()
        return found


def overtaken(house: House, remove: Callable[[House], None]) -> Overtaken:
    registry = Overtaken(house.storage.engine, house.storage.blobs)
    registry.remove = lambda: remove(house)  # type: ignore[method-assign]
    return registry


def test_a_reader_that_a_collection_overtakes_is_told_so_and_then_that_the_version_is_gone(house: House) -> None:
    registry = overtaken(house, remove)
    with (
        pytest.raises(Unavailable, match=rf"{WEIGHTS} \(sha256:[0-9a-f]+\) {REMOVED}"),
        registry.open_file(LAW, WEIGHTS),
    ):
        pass
    with pytest.raises(Gone), registry.open_file(f"{LAW}@1", WEIGHTS):
        pass


def test_a_reader_of_lost_bytes_still_asks_for_a_backup(house: House) -> None:
    registry = overtaken(house, lose)
    with pytest.raises(Corrupt, match="restore it from a backup"), registry.open_file(LAW, WEIGHTS):
        pass


def test_a_pull_that_a_collection_overtakes_writes_nothing(house: House, storage: Storage) -> None:
    """In this process and over HTTP, whether the bytes come from the server or from the store."""
    version = house.registry.version(LAW)
    registry = overtaken(house, remove)
    remote = RemoteRegistry(storage.served().over(registry, storage.folder))
    with pytest.raises((Unavailable, Gone), match=f"{REMOVED}|was deleted"):
        pull(remote, storage.folder / "client", f"{LAW}@1", storage.folder / "out")
    assert not (storage.folder / "out").exists()
    with pytest.raises(Gone):
        fetch(registry, storage.folder / "client", f"{LAW}@1", version.files[0])
    remote.close()


def test_a_local_file_that_a_collection_overtakes_is_told(house: House) -> None:
    registry = overtaken(house, remove)
    if isinstance(house.storage.blobs, LocalBlobStore):
        with pytest.raises(Unavailable, match=REMOVED):
            registry.local_file(f"{LAW}@1", WEIGHTS)
    else:
        with pytest.raises(Unavailable, match=REMOVED):
            registry.check_held(registry.file(f"{LAW}@1", WEIGHTS))


def test_composing_from_a_file_that_was_removed_says_to_run_it_again(build: Build, material: Material) -> None:
    house = filled(build(), material)
    resolution = house.registry.resolve(LAW)
    [(adapter, _)] = AdapterReader(house.registry, material.base, house.settings.home).open_chain(resolution)
    path = fetch(house.registry, house.settings.home, f"{LAW}@1", house.registry.version(LAW).files[0])
    remove(house)
    with pytest.raises(Invalid, match="was removed while it was in use: run the same command again"):
        adapter.parts[next(iter(adapter.parts))]
    with pytest.raises(Unavailable, match="was removed by a collection"):
        open_fetched(path)


class Late(LocalBlobStore):
    """A store that is first asked when a collection has just ended."""

    collect: Callable[[], None] | None = None

    def size(self, digest: str) -> int | None:
        self._run()
        return super().size(digest)

    def open(self, digest: str) -> AbstractContextManager[BinaryIO]:
        self._run()
        return super().open(digest)

    def _run(self) -> None:
        run, self.collect = self.collect, None
        if run:
            run()


def late(house: House, then: Callable[[], None]) -> EmbeddedRegistry:
    assert isinstance(house.storage.blobs, LocalBlobStore)
    store = Late(house.storage.blobs.root)
    store.collect = then
    return EmbeddedRegistry(house.storage.engine, store)


def test_files_that_are_deleted_while_damage_is_looked_for_are_not_damaged(build: Build, material: Material) -> None:
    house = filled(build(), material)
    with pytest.raises(Gone):
        late(house, lambda: remove(house)).damaged_files(f"{LAW}@1")
    lose_one = house.registry.version(MED).files[0]
    house.storage.blobs.delete(lose_one.sha256)
    assert house.registry.damaged_files(f"{MED}@1") == [lose_one]


def test_base_files_that_are_collected_before_they_are_checked_are_told_to_be_sent(
    build: Build, material: Material
) -> None:
    house = filled(build(), material)
    files = []
    for name, content in material.checkpoint.items():
        files.append(FileDigest(name, len(content), sha256(content)))
        house.registry.upload(io.BytesIO(content), sha256=files[-1].sha256, size=files[-1].size)
    weights = [file for file in files if file.name in ("config.json", "model.safetensors")]
    with pytest.raises(NotUploaded, match="these files are not uploaded"):
        late(house, lambda: sweep(house)).store_base("tiny", weights)
