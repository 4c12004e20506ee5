"""Publishing from a folder: what is checked, what it is pinned to, and what is left when it fails."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pytest
import safetensors.torch

from loratree_composer.base.manifest import read_base
from loratree_registry.core.chain import Chain, Mode
from loratree_registry.core.digests import FileDigest, digest_stream
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import Conflict, Invalid, LoratreeError, NotFound
from loratree_registry.settings import Settings
from loratree_registry.workspace.base_locations import remember_base
from loratree_registry.workspace.lockfile import Artifact, Lockfile
from loratree_registry.workspace.publish import PublishResult, publish_directory
from tests import tiny
from tests.registry.fresh import open_fresh

MEDICINE, CARDIOLOGY, ALICE = "tiny/medicine", "tiny/medicine/cardiology", "tiny/medicine/cardiology/diagnosis/alice"


@dataclass(frozen=True)
class Made:
    """Two bases of one shape, and an adapter of each rank over the first."""

    base: Path
    other: Path
    adapters: dict[int, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    base = tiny.llama(folder / "base", tie_word_embeddings=True)
    adapters = {rank: tiny.adapter(base, folder / f"rank{rank}", seed=rank, rank=rank) for rank in (8, 4, 2)}
    return Made(base, tiny.llama(folder / "other", seed=9, tie_word_embeddings=True), adapters)


@dataclass
class Bench:
    """A registry that holds the base `tiny`, and folders to publish from."""

    registry: EmbeddedRegistry
    made: Made
    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def adapter(self, rank: int, base_name: str | Path | None = None) -> Path:
        """A fresh copy of an adapter whose config names `base_name`."""
        directory = self.folder / f"adapter{len(list(self.folder.iterdir()))}"
        shutil.copytree(self.made.adapters[rank], directory)
        config = json.loads((directory / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = None if base_name is None else str(base_name)
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return directory

    def publish(self, directory: Path, path: str, parent: str | None = None, *, force: bool = False) -> PublishResult:
        return publish_directory(self.registry, directory, path, parent=parent, home=self.home, force_parent=force)

    def refusal(
        self, directory: Path, path: str, parent: str | None = None, kind: type[LoratreeError] = Conflict
    ) -> str:
        """The sentence with which publishing is refused; nothing may be stored then."""
        before = self.state()
        with pytest.raises(kind) as refused:
            self.publish(directory, path, parent)
        assert self.state() == before
        assert "\n" not in str(refused.value)
        return str(refused.value)

    def state(self) -> tuple[list[Path], list[str]]:
        blobs = sorted(file for file in (self.home / "blobs").rglob("*") if file.is_file())
        return blobs, [event.kind for event in self.registry.events("tiny").items]

    def composed(self, ref: str, *, mode: Mode = "merge", chain: Chain | None = None) -> Path:
        """A folder with a model and the lockfile that `loratree compose` writes beside it."""
        directory = self.folder / f"composed{len(list(self.folder.iterdir()))}"
        shutil.copytree(self.made.base, directory)
        files = []
        for file in sorted(directory.iterdir()):
            with file.open("rb") as stream:
                sha256, size = digest_stream(stream)
            files.append(FileDigest(file.name, size, sha256))
        artifact = Artifact(mode, "F32", tuple(files))
        found = self.registry.resolve(ref).to_chain()
        Lockfile(ref, chain or found, artifact).write(directory)
        return directory

    def pinned(self, submitted: PublishResult) -> tuple[str | None, int | None, str]:
        pin = submitted.published.version.pin
        return pin.path, pin.version, pin.found


@pytest.fixture
def bench(made: Made, tmp_path: Path) -> Iterator[Bench]:
    registry = open_fresh(Settings.from_environment({"LORATREE_HOME": str(tmp_path / "home")}))
    registry.add_base("tiny", read_base(made.base), source="example/tiny-llama")
    yield Bench(registry, made, tmp_path)
    registry.close()


def test_the_same_folder_again_is_the_same_version_and_sends_nothing(bench: Bench) -> None:
    directory = bench.adapter(8)
    first = bench.publish(directory, MEDICINE)
    assert first.published.created
    assert first.uploaded_bytes == (directory / "adapter_model.safetensors").stat().st_size
    assert first.not_published == []
    assert [document.name for document in bench.registry.documents(first.published.version.path)] == ["README.md"]
    before = bench.state()
    again = bench.publish(directory, MEDICINE)
    assert again.published.version == first.published.version
    assert not again.published.created
    assert again.uploaded_bytes == 0
    assert bench.state() == before


def test_the_same_folder_at_another_level_is_refused(bench: Bench) -> None:
    directory = bench.adapter(8)
    bench.publish(directory, MEDICINE)
    with pytest.raises(Conflict, match="is a domain and cannot become a task"):
        publish_directory(bench.registry, directory, MEDICINE, level="task", home=bench.home)


def test_a_folder_whose_pin_is_open_by_now_is_still_the_same_version(bench: Bench) -> None:
    directory = bench.adapter(4, bench.made.base)
    first = bench.publish(directory, CARDIOLOGY)
    bench.publish(bench.adapter(8, bench.made.base), MEDICINE)
    again = bench.publish(directory, CARDIOLOGY)
    assert again.published.version == first.published.version
    assert again.pin.why == "already published, pinned to base"


def test_the_same_folder_with_another_pin_is_another_version(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    directory = bench.adapter(4)
    on_base = bench.publish(directory, CARDIOLOGY, "base").published.version
    on_medicine = bench.publish(directory, CARDIOLOGY, MEDICINE).published.version
    assert (on_base.number, on_medicine.number) == (1, 2)
    assert on_base.content == on_medicine.content
    assert bench.publish(directory, CARDIOLOGY, "base").published.version == on_base


def test_a_lockfile_pins_to_the_leaf_of_its_chain(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    composed = bench.composed(MEDICINE)
    bench.publish(bench.adapter(8, bench.made.base), MEDICINE, "base")
    submitted = bench.publish(bench.adapter(4, composed), CARDIOLOGY)
    assert bench.pinned(submitted) == (MEDICINE, 1, "lockfile")
    assert submitted.pin.why == f"pinned to {MEDICINE}@1, from the lockfile {composed / 'loratree.json'}"
    leaf = bench.publish(bench.adapter(2, bench.composed(CARDIOLOGY)), ALICE)
    assert bench.pinned(leaf) == (CARDIOLOGY, 1, "lockfile")


def test_a_lockfile_still_pins_to_its_version_when_there_is_a_newer_one(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    composed = bench.composed(MEDICINE)
    bench.publish(bench.adapter(4), MEDICINE, "base")
    assert bench.pinned(bench.publish(bench.adapter(2, composed), CARDIOLOGY)) == (MEDICINE, 1, "lockfile")


def test_a_lockfile_of_the_bare_base_pins_to_the_base(bench: Bench) -> None:
    composed = bench.composed("tiny")
    bench.publish(bench.adapter(8), MEDICINE)
    assert bench.pinned(bench.publish(bench.adapter(4, composed), CARDIOLOGY)) == (None, None, "lockfile")


def test_a_parent_that_agrees_with_the_lockfile_changes_nothing_and_one_that_does_not_is_refused(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    bench.publish(bench.adapter(4), MEDICINE, "base")
    directory = bench.adapter(2, bench.composed(f"{MEDICINE}@1"))
    message = bench.refusal(directory, CARDIOLOGY, f"{MEDICINE}@2")
    assert f"--parent says {MEDICINE}@2, but the adapter is pinned to {MEDICINE}@1" in message
    message = bench.refusal(directory, CARDIOLOGY, "base")
    assert "--parent says base" in message
    assert message.endswith("leave --parent out, or overrule it by --force-parent, which the version shows for ever")
    assert bench.pinned(bench.publish(directory, CARDIOLOGY, f"{MEDICINE}@1")) == (MEDICINE, 1, "lockfile")


def test_a_lockfile_that_was_edited_or_whose_model_changed_is_refused_unless_the_parent_is_said(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    for number, (name, change) in enumerate(
        [
            ("loratree.json", lambda text: text.replace(b'"version": 1', b'"version": 2')),
            ("loratree.json", lambda text: text.replace(b'"weight": 1', b'"weight": 0.5')),
            ("loratree.json", lambda text: text[:-20]),
            ("loratree.json", lambda _: b"[]"),
            ("model.safetensors", lambda data: data[:-1] + b"\x01"),
            ("model.safetensors", lambda data: data[:-1]),
        ]
    ):
        composed = bench.composed(MEDICINE)
        file = composed / name
        file.write_bytes(change(file.read_bytes()))
        path = f"{MEDICINE}/broken{number}"
        directory = bench.adapter(4, composed)
        message = bench.refusal(directory, path, kind=LoratreeError)
        assert str(composed) in message
        remedies = ("say with --parent what the adapter was trained on", f"say --parent {MEDICINE}@1")
        assert message.endswith((*remedies, "--force-parent, which the version shows for ever"))
        if "changed since" in message:
            assert "--parent says base" in bench.refusal(directory, path, "base")
        assert bench.pinned(bench.publish(directory, path, MEDICINE)) == (MEDICINE, 1, "explicit")


def test_a_composition_that_no_pin_can_name_is_refused(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    bench.publish(bench.adapter(4), CARDIOLOGY, MEDICINE)
    pinned = bench.registry.resolve(CARDIOLOGY).to_chain()
    halved = replace(pinned, steps=(replace(pinned.steps[0], weight=0.5), pinned.steps[1]))
    skipped = replace(pinned, steps=pinned.steps[1:])
    for chain in (halved, skipped):
        composed = bench.composed(CARDIOLOGY, chain=chain)
        message = bench.refusal(bench.adapter(2, composed), ALICE, kind=Invalid)
        assert f"is not what {CARDIOLOGY}@1 resolves to by its pins" in message


def test_a_composition_of_another_registry_is_refused(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    chain = bench.registry.resolve(MEDICINE).to_chain()
    unknown = replace(chain, steps=(replace(chain.steps[0], version=7),))
    other = replace(chain, steps=(replace(chain.steps[0], digest="sha256:" + "0" * 64),))
    message = bench.refusal(bench.adapter(4, bench.composed(MEDICINE, chain=unknown)), CARDIOLOGY, kind=NotFound)
    assert f"names {MEDICINE}@7, which this registry does not hold" in message
    directory = bench.adapter(4, bench.composed(MEDICINE, chain=other))
    assert "composed from another registry, or changed since" in bench.refusal(directory, CARDIOLOGY)
    assert "overrule it by --force-parent" in bench.refusal(directory, CARDIOLOGY, "base")
    assert bench.pinned(bench.publish(directory, CARDIOLOGY, "base", force=True)) == (None, None, "forced")


def test_a_composition_of_another_base_is_refused_whatever_parent_says(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    bench.registry.add_base("other", read_base(bench.made.other))
    composed = bench.composed("tiny", chain=bench.registry.resolve("other").to_chain())
    directory = bench.adapter(4, composed)
    for parent in (None, MEDICINE, "base"):
        message = bench.refusal(directory, CARDIOLOGY, parent)
        assert "was trained on a composition of another base" in message
        assert "--parent" not in message


def test_a_flattened_adapter_and_a_composition_that_is_not_above_are_refused(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    flattened = bench.composed(MEDICINE, mode="flatten")
    assert "is of a flattened adapter" in bench.refusal(bench.adapter(4, flattened), CARDIOLOGY, kind=Invalid)
    composed = bench.composed(MEDICINE)
    for path in (MEDICINE, "tiny/law", f"{MEDICINE}-x/y"):
        message = bench.refusal(bench.adapter(4, composed), path, kind=Invalid)
        assert f"is a composition of {MEDICINE}, which is not above {path}" in message


def test_an_adapter_that_names_the_plain_base_is_pinned_to_it_while_nothing_above_has_a_version(bench: Bench) -> None:
    copied = shutil.copytree(bench.made.base, bench.folder / "copied")
    names = ["tiny", "example/tiny-llama", bench.made.base, copied]
    for number, name in enumerate(names):
        submitted = bench.publish(bench.adapter(8, name), f"tiny/domain{number}/deep")
        assert bench.pinned(submitted) == (None, None, "explicit")
    bench.publish(bench.adapter(8), MEDICINE)
    for name in names:
        message = bench.refusal(bench.adapter(4, name), CARDIOLOGY)
        assert "names the plain base tiny" in message
        assert message.endswith(
            "if that is all it was trained on, say --parent base, or else --parent with the version it was trained on "
            f"(the head is {MEDICINE}@1 now, which may be newer)"
        )


def test_a_base_s_remembered_folder_is_the_base_only_while_it_holds_its_weights(bench: Bench) -> None:
    remembered = shutil.copytree(bench.made.base, bench.folder / "remembered")
    remember_base(bench.home, bench.registry.base("tiny").digest, remembered)
    link = bench.folder / "link"
    link.symlink_to(remembered)
    assert bench.pinned(bench.publish(bench.adapter(8, link), MEDICINE)) == (None, None, "explicit")
    shutil.copyfile(bench.made.other / "model.safetensors", remembered / "model.safetensors")
    message = bench.refusal(bench.adapter(4, link), "tiny/law")
    assert "holds other weights than tiny, although it was added from there" in message


def test_a_base_with_an_adapter_beside_it_is_not_the_base(bench: Bench) -> None:
    folder = shutil.copytree(bench.made.base, bench.folder / "both")
    shutil.copytree(bench.made.adapters[8], folder, dirs_exist_ok=True)
    assert "holds other weights than tiny" in bench.refusal(bench.adapter(4, folder), MEDICINE)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model-00001-of-00001.safetensors", "adapter_config.json", "x.safetensors.index.json"]
)
def test_a_composition_with_other_weights_beside_it_is_refused(name: str, bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    composed = bench.composed(MEDICINE)
    (composed / "README.md").touch()
    (composed / "checkpoint-9").mkdir()
    (composed / "checkpoint-9" / "adapter_config.json").touch()
    (composed / name).touch()
    message = bench.refusal(bench.adapter(4, composed), CARDIOLOGY, kind=Invalid)
    assert f"holds files that are not of its composition and would be loaded with it ({name})" in message
    (composed / name).unlink()
    assert bench.pinned(bench.publish(bench.adapter(4, composed), CARDIOLOGY)) == (MEDICINE, 1, "lockfile")


def test_a_model_safetensors_that_hides_composed_shards_is_refused(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    composed = bench.composed(MEDICINE)
    lockfile = json.loads((composed / "loratree.json").read_text())
    shard = "model-00001-of-00001.safetensors"
    (composed / "model.safetensors").rename(composed / shard)
    files = [FileDigest(**file) for file in lockfile["artifact"]["files"]]
    renamed = [replace(file, name=shard) if file.name == "model.safetensors" else file for file in files]
    chain = bench.registry.resolve(MEDICINE).to_chain()
    Lockfile(MEDICINE, chain, Artifact("merge", "F32", tuple(renamed))).write(composed)
    shutil.copy(bench.made.other / "model.safetensors", composed)
    assert "(model.safetensors)" in bench.refusal(bench.adapter(4, composed), CARDIOLOGY, kind=Invalid)
    (composed / "model.safetensors").unlink()
    assert bench.pinned(bench.publish(bench.adapter(4, composed), CARDIOLOGY)) == (MEDICINE, 1, "lockfile")


@pytest.mark.parametrize("kept", ["", "config.json", "model.safetensors"])
def test_a_lockfile_that_lists_no_whole_model_is_refused(kept: str, bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    composed = bench.composed(MEDICINE)
    lockfile = json.loads((composed / "loratree.json").read_text())
    files = tuple(FileDigest(**file) for file in lockfile["artifact"]["files"] if file["name"] == kept)
    chain = bench.registry.resolve(MEDICINE).to_chain()
    Lockfile(MEDICINE, chain, Artifact("merge", "F32", files)).write(composed)
    message = bench.refusal(bench.adapter(4, composed), CARDIOLOGY, kind=Invalid)
    assert "lists no whole merge composition" in message


def test_a_sharded_copy_of_the_base_is_the_base_and_one_changed_byte_is_another_model(bench: Bench) -> None:
    copied = shutil.copytree(bench.made.base, bench.folder / "copied")
    tensors = safetensors.torch.load_file(copied / "model.safetensors")
    names = sorted(tensors)
    (copied / "model.safetensors").unlink()
    tied = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    places = {}
    for number, part in enumerate((names[:9], names[9:])):
        shard = {name: tensors[name] for name in part} | (tied if number else {})
        places |= dict.fromkeys(shard, f"model-0000{number + 1}-of-00002.safetensors")
        safetensors.torch.save_file(shard, copied / f"model-0000{number + 1}-of-00002.safetensors")
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert bench.pinned(bench.publish(bench.adapter(8, copied), MEDICINE)) == (None, None, "explicit")
    last = copied / "model-00002-of-00002.safetensors"
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    message = bench.refusal(bench.adapter(8, copied), "tiny/law")
    assert "holds other weights than tiny, so what tiny/law builds on is open: say --trained-on with" in message
    assert message.endswith("or --parent base, if it was trained on the plain base")


@pytest.mark.parametrize("change", ["other weights", "a missing shard", "a truncated file"])
def test_a_folder_of_other_weights_is_never_taken_for_the_base(change: str, bench: Bench) -> None:
    copied = shutil.copytree(
        bench.made.other if change == "other weights" else bench.made.base, bench.folder / "copied"
    )
    weights = copied / "model.safetensors"
    if change == "a missing shard":
        tensors = safetensors.torch.load_file(weights)
        tensors.popitem()
        safetensors.torch.save_file(tensors, weights)
    if change == "a truncated file":
        weights.write_bytes(weights.read_bytes()[:-1])
    assert "holds other weights than tiny" in bench.refusal(bench.adapter(8, copied), MEDICINE)
    assert bench.pinned(bench.publish(bench.adapter(8, copied), MEDICINE, "base")) == (None, None, "explicit")


def test_an_adapter_that_names_nothing_is_assumed_to_be_of_the_nearest_head(bench: Bench) -> None:
    first = bench.publish(bench.adapter(8), MEDICINE)
    assert bench.pinned(first) == (None, None, "assumed")
    assert first.pin.why.endswith("does not say what it was trained on: assumed to be the base tiny")
    deep = bench.publish(bench.adapter(4), ALICE)
    assert bench.pinned(deep) == (MEDICINE, 1, "assumed")
    assert deep.pin.why.endswith(f"assumed to be the nearest ancestor's head, {MEDICINE}@1")


def test_a_name_that_is_not_known_is_refused_only_below_a_version(bench: Bench) -> None:
    for name in ("someone/else/merged", bench.folder / "gone", "x" * 5000, "nul\0byte", "two\nlines"):
        number = bench.publish(bench.adapter(8, name), MEDICINE, None).published.version
        assert number.pin.found == "assumed"
        message = bench.refusal(bench.adapter(4, name), CARDIOLOGY)
        assert "is not known here" in message
        assert len(message) < 600
        assert "say --trained-on with that folder or its loratree.json, where it is now, or" in message
        assert f"--parent {MEDICINE}" not in message


def test_where_the_composition_is_gone_no_head_is_offered_as_the_answer(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    composed = bench.composed(MEDICINE)
    directory = bench.adapter(4, composed)
    bench.publish(bench.adapter(2), MEDICINE, "base")
    moved = composed.rename(composed.parent / "moved")
    message = bench.refusal(directory, CARDIOLOGY)
    assert message.endswith(
        "say --trained-on with that folder or its loratree.json, where it is now, or --parent with the version it was "
        f"trained on (the head is {MEDICINE}@2 now, which may be newer)"
    )
    published = publish_directory(bench.registry, directory, CARDIOLOGY, home=bench.home, trained_on=moved)
    assert bench.pinned(published) == (MEDICINE, 1, "lockfile")
    message = bench.refusal(bench.adapter(2, composed), f"{CARDIOLOGY}/x")
    assert message.endswith(f"(the heads are {MEDICINE}@2, {CARDIOLOGY}@1 now, which may be newer)")


def test_a_parent_must_be_a_version_above(bench: Bench) -> None:
    bench.publish(bench.adapter(8), MEDICINE)
    bench.publish(bench.adapter(4), "tiny/law")
    directory = bench.adapter(2)
    for parent, phrase, kind in [
        ("tiny/law", "--parent tiny/law is not above tiny/medicine/cardiology", Invalid),
        (CARDIOLOGY, "is not above", Invalid),
        ("other/medicine", "is not above", Invalid),
        (f"{MEDICINE}@9", "9", NotFound),
        (f"{MEDICINE}@stable", "stable", NotFound),
        ("../x", "segment", Invalid),
    ]:
        assert phrase in bench.refusal(directory, CARDIOLOGY, parent, kind)
    assert bench.pinned(bench.publish(directory, CARDIOLOGY, MEDICINE)) == (MEDICINE, 1, "explicit")
    assert bench.pinned(bench.publish(bench.adapter(2), f"{MEDICINE}/x", "tiny")) == (None, None, "explicit")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("tiny", Invalid),
        ("tiny/../x", Invalid),
        ("tiny/Medicine", Invalid),
        ("tiny/" + "x" * 200, Invalid),
        ("no/x", NotFound),
    ],
)
def test_a_path_that_cannot_be_is_refused(path: str, kind: type[LoratreeError], bench: Bench) -> None:
    bench.refusal(bench.adapter(8), path, kind=kind)


def test_an_adapter_that_does_not_fit_is_refused_before_a_byte_is_sent(bench: Bench) -> None:
    directory = bench.adapter(8)
    weights = directory / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors.popitem()
    safetensors.torch.save_file(tensors, weights)
    assert "both A and B are needed" in bench.refusal(directory, MEDICINE, kind=Invalid)


class Disturbed(EmbeddedRegistry):
    """An embedded registry beside which another program writes to the file while it is sent."""

    disturb: BinaryIO

    def upload(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        os.pwrite(self.disturb.fileno(), b"\x01", size - 1)
        super().upload(stream, sha256=sha256, size=size)


def test_a_file_that_changes_while_it_is_sent_is_not_published(bench: Bench) -> None:
    directory = bench.adapter(8)
    registry = Disturbed(bench.registry._engine, bench.registry._blobs)
    with (directory / "adapter_model.safetensors").open("r+b") as registry.disturb:
        message = Bench(registry, bench.made, bench.folder).refusal(directory, MEDICINE)
    assert message == (
        f"{directory / 'adapter_model.safetensors'} changed while it was sent, so nothing was published: "
        "wait until it is written and publish again"
    )
