"""What is damaged where it is stored is told, and put right by sending the same again; in process and over HTTP."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from loratree_registry.core.registry import Registry
from loratree_registry.errors import Corrupt, NotFound
from loratree_registry.workspace.base_transfer import push_base
from loratree_registry.workspace.fetch import pull
from loratree_registry.workspace.publish import publish_directory
from tests import tiny
from tests.registry.conftest import Storage, embedded_sqlite, remote
from tests.registry.material import Material

MED = "tiny/medicine"


@pytest.fixture(params=[embedded_sqlite, remote])
def empty(request: pytest.FixtureRequest, storage: Storage) -> Iterator[Registry]:
    """A registry over a folder that a test can spoil."""
    with request.param(storage) as registry:
        yield registry


@pytest.fixture
def adapter(registry: Registry, material: Material, storage: Storage) -> Path:
    """The folder of tiny/medicine@1."""
    base = tiny.llama(storage.folder / "base")
    directory = tiny.adapter(base, storage.folder / "adapter", rank=4)
    publish_directory(registry, directory, MED, parent="base", home=storage.folder)
    return directory


def blobs(storage: Storage) -> list[Path]:
    return [path for path in (storage.folder / "home" / "blobs" / "sha256").rglob("*") if path.is_file()]


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


@pytest.mark.parametrize("spoil", [flip, Path.unlink])
def test_publishing_the_same_again_puts_damaged_bytes_right(
    registry: Registry, adapter: Path, storage: Storage, spoil: object
) -> None:
    assert registry.damaged_files(f"{MED}@1") == []
    spoil(blobs(storage)[0])  # type: ignore[operator]
    assert registry.damaged_files(f"{MED}@1") == registry.version(f"{MED}@1").files
    again = publish_directory(registry, adapter, MED, parent="base", home=storage.folder)
    assert (again.published.created, again.uploaded_bytes) == (False, again.published.version.size)
    assert registry.damaged_files(f"{MED}@1") == []
    assert publish_directory(registry, adapter, MED, parent="base", home=storage.folder).uploaded_bytes == 0


@pytest.mark.parametrize("spoil", [flip, Path.unlink])
def test_pushing_the_same_base_again_puts_damaged_files_right(
    registry: Registry, material: Material, storage: Storage, spoil: object
) -> None:
    folder = storage.folder / "tiny"
    folder.mkdir()
    for name, content in material.checkpoint.items():
        (folder / name).write_bytes(content)
    stored = push_base(registry, "tiny", folder)
    assert registry.damaged_files("tiny") == []
    spoil(blobs(storage)[0])  # type: ignore[operator]
    damaged = registry.damaged_files("tiny")
    assert len(damaged) == 1
    assert push_base(registry, "tiny", folder).sent == [damaged[0].name]
    assert registry.damaged_files("tiny") == []
    assert push_base(registry, "tiny", folder).sent == []
    assert stored.files == registry.base_files("tiny")


def test_what_is_not_there_has_no_damaged_files(registry: Registry) -> None:
    for ref in ("absent", f"{MED}@1"):
        with pytest.raises(NotFound):
            registry.damaged_files(ref)


def test_a_version_whose_record_was_changed_is_not_pulled(registry: Registry, adapter: Path, storage: Storage) -> None:
    engine = create_engine(f"sqlite:///{storage.folder}/home/loratree.db")
    with engine.begin() as connection:
        connection.execute(text("""UPDATE versions SET config = replace(config, '"r": 4', '"r": 5')"""))
    engine.dispose()
    with pytest.raises(Corrupt, match=rf"record is damaged: {MED}@1 has the content digest"):
        pull(registry, storage.folder, f"{MED}@1", storage.folder / "out")
    assert not (storage.folder / "out").exists()
