"""What every Registry does with bytes: the same suite over the local folder and over S3, in process and over HTTP."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loratree_registry.blobs.counted import counted
from loratree_registry.blobs.store import PART
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.records import Submission
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Conflict, Invalid, NotFound
from loratree_registry.workspace.base_locations import base_directory
from loratree_registry.workspace.base_transfer import pull_base, push_base
from tests.registry.conftest import OVER_S3, REGISTRIES, Storage
from tests.registry.material import WEIGHTS, Material, publish, sha256
from tests.steps import Steps

MED = "tiny/medicine"
MODEL = "model.safetensors"


@pytest.fixture(params=REGISTRIES | OVER_S3)
def empty(request: pytest.FixtureRequest, storage: Storage) -> Iterator[Registry]:
    """A registry that holds nothing, of every kind."""
    with (REGISTRIES | OVER_S3)[request.param](storage) as registry:
        yield registry


@pytest.fixture
def folder(material: Material, tmp_path: Path) -> Path:
    """The checkpoint of the base tiny, and what else may lie in such a folder."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    for name, content in material.checkpoint.items():
        (directory / name).write_bytes(content)
    (directory / "tokenizer.json").write_text("{}")
    (directory / "pytorch_model.bin").write_bytes(b"pickled")
    (directory / "modeling_tiny.py").write_text("print('never run')")
    return directory


def upload(registry: Registry, files: dict[str, bytes]) -> list[FileDigest]:
    for content in files.values():
        registry.upload(io.BytesIO(content), sha256=sha256(content), size=len(content))
    return [FileDigest(name, len(content), sha256(content)) for name, content in files.items()]


# versions' files


def test_a_versions_file_reads_back_as_it_was_sent(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    with registry.open_file(f"{MED}@1", WEIGHTS) as stream:
        assert stream.read() == material.rank8.weights


def test_a_file_is_read_from_where_a_reader_broke_off(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    for start in (1, 1000, len(material.rank8.weights) - 1):
        with registry.open_file(MED, WEIGHTS, start=start) as stream:
            assert stream.read() == material.rank8.weights[start:]


def test_a_file_that_a_version_has_not_is_not_found_and_what_it_has_is_named(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    for name in ("adapter_config.json", "", "../x", "ä"):
        with pytest.raises(NotFound, match=f"it has {WEIGHTS}"), registry.open_file(MED, name):
            pass


def test_an_upload_of_other_bytes_than_announced_is_refused(registry: Registry, material: Material) -> None:
    file, wrong = material.rank8.file, material.rank8.weights[:-1] + b"!"
    for content, size in ((wrong, file.size), (material.rank8.weights, file.size + 1)):
        with pytest.raises(Invalid, match=file.sha256):
            registry.upload(io.BytesIO(content), sha256=file.sha256, size=size)
    submission = Submission(config=material.rank8.config, files=[file], parent=None, found="assumed")
    with pytest.raises(NotFound, match="not uploaded"):
        registry.publish(MED, submission)


def test_bytes_of_several_parts_are_stored_as_they_were_sent(registry: Registry) -> None:
    content, counts = os.urandom(1024) * (PART // 1024) + b"the last part", list[int]()
    file = FileDigest("config.json", len(content), sha256(content))
    registry.upload(counted(io.BytesIO(content), counts.append), sha256=file.sha256, size=file.size)
    assert sum(counts) == file.size  # what a bar shows, wherever the bytes go
    assert registry.missing_files("tiny", [file]) == []


def test_a_stream_that_cannot_seek_is_stored_too(registry: Registry, material: Material) -> None:
    file = material.rank4.file
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb") as sender:
        sender.write(material.rank4.weights)
        sender.close()
        registry.upload(stream, sha256=file.sha256, size=file.size)
    assert registry.missing_files("tiny", [file]) == []


# bases' weights


def test_a_bases_weights_are_stored_once_and_read_back(registry: Registry, material: Material) -> None:
    assert (registry.base("tiny").stored, registry.base_files("tiny")) == (False, [])
    files = upload(registry, material.checkpoint)
    assert registry.missing_files("tiny", files) == []
    stored = registry.store_base("tiny", files)
    assert stored == registry.base("tiny") == registry.bases().items[0]
    assert stored.stored
    assert registry.base_files("tiny") == sorted(files, key=lambda file: file.name)
    assert registry.store_base("tiny", files) == stored
    with registry.open_file("tiny", MODEL) as stream:
        assert stream.read() == material.checkpoint[MODEL]
    assert [event.kind for event in registry.events("tiny").items] == ["base-stored", "base-added"]


def test_files_that_were_not_uploaded_are_missing_and_cannot_be_stored(registry: Registry, material: Material) -> None:
    files = upload(registry, material.checkpoint)
    unsent = FileDigest("tokenizer.json", 2, sha256(b"{}"))
    assert registry.missing_files("tiny", [*files, unsent]) == [unsent]
    with pytest.raises(NotFound, match=r"these files are not uploaded: tokenizer\.json"):
        registry.store_base("tiny", [*files, unsent])
    assert not registry.base("tiny").stored


def test_weights_that_are_not_the_bases_are_refused_and_nothing_is_recorded(
    registry: Registry, material: Material
) -> None:
    weights = material.checkpoint[MODEL]
    renamed = weights.replace(b"model.norm.weight", b"model.nurm.weight")
    for wrong, why in ((weights[:-1] + b"\x7f", "has other values"), (renamed, "is unexpected"), (b"x", "truncated")):
        files = upload(registry, material.checkpoint | {MODEL: wrong})
        with pytest.raises(Invalid, match=why):
            registry.store_base("tiny", files)
    assert (registry.base("tiny").stored, registry.base_files("tiny")) == (False, [])
    with (
        pytest.raises(NotFound, match="store them with `loratree base push tiny DIR`"),
        registry.open_file("tiny", MODEL),
    ):
        pass


def test_files_that_are_no_checkpoints_are_refused_by_name(registry: Registry, material: Material) -> None:
    wrong = ["../x.json", "pytorch_model.bin", "run.py", "adapter_config.json", ".x.json", ""]
    files = [FileDigest(name, 2, sha256(b"{}")) for name in wrong]
    with pytest.raises(Invalid) as refused:
        registry.store_base("tiny", files)
    for told in (
        *(f"{name!r} is not one that is stored" for name in wrong),
        "config.json is missing",
        f"either {MODEL}",
    ):
        assert told in str(refused.value)


def test_weights_are_stored_once_and_other_files_are_a_conflict(registry: Registry, material: Material) -> None:
    registry.store_base("tiny", upload(registry, material.checkpoint))
    others = upload(registry, material.checkpoint | {"config.json": b"{}"})
    with pytest.raises(Conflict, match=r"is stored already and as other files: config\.json"):
        registry.store_base("tiny", others)


def test_a_base_that_is_not_there_has_no_weights(registry: Registry) -> None:
    for ask in (
        registry.base_files,
        lambda name: registry.missing_files(name, []),
        lambda name: registry.store_base(name, []),
    ):
        with pytest.raises(NotFound, match="the base absent is not known"):
            ask("absent")


def test_a_folder_is_pushed_and_pulled_whole(registry: Registry, folder: Path, tmp_path: Path) -> None:
    pushed = push_base(registry, "tiny", folder)
    assert pushed.not_stored == ["modeling_tiny.py", "pytorch_model.bin"]
    assert sorted(pushed.sent) == ["config.json", "generation_config.json", MODEL, "tokenizer.json"]
    assert push_base(registry, "tiny", folder).sent == []
    home, out = tmp_path / "home", tmp_path / "out"
    assert pull_base(registry, home, "tiny", out) == registry.base("tiny")
    assert base_directory(home, registry.base("tiny").digest) == out
    assert sorted(path.name for path in out.iterdir()) == sorted(pushed.sent)
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in pushed.sent)
    assert not [path for path in (home / "cache").rglob("*") if path.is_file()]
    pull_base(registry, home, "tiny", out)  # the same again is left alone
    (out / "config.json").write_text("{}")
    with pytest.raises(Conflict, match="holds something else than the base tiny"):
        pull_base(registry, home, "tiny", out)


def test_each_transfer_tells_its_bytes_to_the_last(registry: Registry, folder: Path, tmp_path: Path) -> None:
    push, pull = Steps(), Steps()
    pushed = push_base(registry, "tiny", folder, progress=push)
    pull_base(registry, tmp_path / "home", "tiny", tmp_path / "out", progress=pull)
    size = sum(file.size for file in pushed.files)
    whole = (size, size, "bytes")
    assert push.ended[f"hashing {folder}"] == push.ended["sending tokenizer.json"] == whole
    assert pull.ended["fetching tokenizer.json of tiny"] == whole
    assert push.ended[f"comparing {folder}"][0] > 0
    assert push.ended["the registry checks what it got"] == (0, 0, "bytes")
    assert pull.ended["comparing what was written"][0] > 0


def test_a_push_that_is_interrupted_stores_no_weights_and_goes_on(registry: Registry, folder: Path) -> None:
    def interrupt(what: str, done: int, *_: object) -> None:
        if what.startswith(f"sending {MODEL}") and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        push_base(registry, "tiny", folder, progress=interrupt)
    assert not registry.base("tiny").stored
    assert MODEL in push_base(registry, "tiny", folder).sent
    assert registry.base("tiny").stored
