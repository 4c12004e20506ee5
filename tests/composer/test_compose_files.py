import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from loratree_composer.base.manifest import read_base
from loratree_composer.compose_files import compose
from loratree_registry.core.chain import Limit, Mode
from loratree_registry.errors import CompositionWarning, Conflict, Corrupt, Invalid, NotFound, Unavailable
from loratree_registry.workspace.adapter_directory import read_adapter_directory
from loratree_registry.workspace.base_locations import remember_base
from loratree_registry.workspace.lockfile import LOCKFILE, Lockfile, check_artifact, read_lockfile
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Catalog
from tests.steps import Steps

MODES: list[Mode] = ["merge", "flatten"]
Compose = Callable[..., Lockfile]


@pytest.fixture
def make(catalog: Catalog, tmp_path: Path) -> Compose:
    """Composes the leaf, or another ref, into tmp_path/out."""

    def made(mode: Mode, ref: str = catalog.leaf, out: Path = tmp_path / "out", **options: object) -> Lockfile:
        return compose(catalog.registry, ref, mode, out, home=catalog.home, **options)  # type: ignore[arg-type]

    return made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB, smaller than the tiny base."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize(
    ("mode", "limit", "steps"),
    [
        ("merge", None, ["fetching", "merging", "hashing", "waiting"]),
        ("flatten", None, ["fetching", "summing", "writing", "hashing", "waiting"]),
        ("flatten", Limit(rank=2), ["fetching", "summing", "truncating", "writing", "hashing", "waiting"]),
    ],
)
def test_each_step_tells_how_far_it_is(make: Compose, mode: Mode, limit: Limit | None, steps: list[str]) -> None:
    told = Steps()
    lockfile = make(mode, limit=limit, progress=told)
    assert [what.partition(" ")[0] for what in told.ended] == steps
    assert told.unfinished() == []
    written = sum(file.size for file in lockfile.artifact.files)
    assert told.ended["hashing what was written"] == (written, written, "bytes")
    make(mode, limit=limit, progress=(again := Steps()))
    assert [what.partition(" ")[0] for what in again.ended] == ["comparing"]
    assert again.unfinished() == []


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "home")


def test_transformers_loads_the_merged_checkpoint_and_gives_pefts_logits(
    make: Compose, catalog: Catalog, tmp_path: Path
) -> None:
    make("merge")
    reference = chains.logits(chains.merged_by_peft(catalog.tree.base, catalog.tree.chain))
    assert chains.relative(chains.logits(chains.load(tmp_path / "out")), reference) < 1e-5


def test_peft_loads_the_flattened_adapter_and_gives_the_merged_logits(
    make: Compose, catalog: Catalog, tmp_path: Path
) -> None:
    make("merge", out=tmp_path / "merged")
    make("flatten")
    model = peft.PeftModel.from_pretrained(chains.load(catalog.tree.base), tmp_path / "out")
    merged = chains.logits(chains.load(tmp_path / "merged"))
    assert chains.relative(chains.logits(model), merged) < 1e-5


def test_the_flattened_adapter_can_itself_be_published(make: Compose, catalog: Catalog, tmp_path: Path) -> None:
    make("flatten")
    spec = read_adapter_directory(tmp_path / "out").spec(catalog.tree.manifest)
    assert spec.summary().scales == [1.0]
    assert spec.summary().rules == {"additive": len(spec.modules)}


@pytest.mark.parametrize("mode", MODES)
def test_the_lockfile_says_what_was_composed_and_what_was_made(
    make: Compose, catalog: Catalog, tmp_path: Path, mode: Mode
) -> None:
    lockfile = make(mode)
    assert read_lockfile(tmp_path / "out") == lockfile
    check_artifact(lockfile, tmp_path / "out")
    assert lockfile.chain == catalog.registry.resolve(catalog.leaf).to_chain()
    assert (lockfile.ref, lockfile.artifact.mode, lockfile.artifact.dtype) == (catalog.leaf, mode, "F32")
    assert {file.name for file in lockfile.artifact.files} == set(left(tmp_path / "out")) - {LOCKFILE}
    assert left(tmp_path) == ["out"]


@pytest.mark.parametrize("mode", MODES)
def test_composing_twice_gives_the_same_bytes(make: Compose, tmp_path: Path, mode: Mode) -> None:
    make(mode)
    make(mode, out=tmp_path / "again")
    for path in (tmp_path / "out").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("mode", MODES)
def test_the_same_composition_that_is_there_and_intact_is_the_answer(make: Compose, tmp_path: Path, mode: Mode) -> None:
    first, written = make(mode), (tmp_path / "out" / LOCKFILE).stat()
    assert make(mode) == first
    now = (tmp_path / "out" / LOCKFILE).stat()
    assert (now.st_ino, now.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_a_base_alone_composes_to_a_copy_of_itself(make: Compose, catalog: Catalog, tmp_path: Path) -> None:
    lockfile = make("merge", "tiny")
    assert lockfile.chain.steps == ()
    assert read_base(tmp_path / "out") == catalog.tree.manifest
    for path in catalog.tree.base.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(Invalid, match="the base itself"):
        make("flatten", "tiny", tmp_path / "flat")


def test_shards_keep_their_names_and_their_index(make: Compose, catalog: Catalog, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    chains.load(catalog.tree.base).save_pretrained(sharded, max_shard_size="20KB")  # type: ignore[operator]
    make("merge", base_directory=sharded)
    make("merge", out=tmp_path / "single")
    weights = {path.name for path in sharded.glob("*.safetensors*")}
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors*")} == weights
    assert chains.state_digest(chains.load(tmp_path / "out")) == chains.state_digest(chains.load(tmp_path / "single"))


def test_a_bfloat16_base_stays_bfloat16_and_is_what_the_live_merge_gives(catalog: Catalog, tmp_path: Path) -> None:
    from loratree_composer.composer import Composer

    base = tiny.llama(tmp_path / "half", dtype=torch.bfloat16)
    catalog.registry.add_base("half", read_base(base))
    catalog.publish(catalog.tree.chain[0], "half/medicine", parent="base")
    lockfile = compose(
        catalog.registry, "half/medicine", "merge", tmp_path / "out", home=catalog.home, base_directory=base
    )
    model = chains.load(base, torch.bfloat16)
    Composer(model, catalog.registry, home=catalog.home).merge("half/medicine")
    assert lockfile.artifact.dtype == "BF16"
    assert chains.state_digest(chains.load(tmp_path / "out", torch.bfloat16)) == chains.state_digest(model)


def test_configs_and_tokenizers_come_along_and_nothing_else(make: Compose, catalog: Catalog, tmp_path: Path) -> None:
    base = Path(shutil.copytree(catalog.tree.base, tmp_path / "base"))
    beside = ["tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "generation_config.json"]
    others = ["pytorch_model.bin", "optimizer.pt", "modeling_giga.py", LOCKFILE, "adapter_config.json", ".hidden.json"]
    others += ["old.safetensors", "pytorch_model.bin.index.json", "trainer_state.json", "training_args.bin"]
    for name in beside + others:
        (base / name).write_text("{}")
    (base / "checkpoint-1").mkdir()
    make("merge", base_directory=base)
    assert set(left(tmp_path / "out")) == {"config.json", "model.safetensors", *beside, LOCKFILE}


def test_a_mixture_of_levels_can_be_asked_for_by_alias(make: Compose, catalog: Catalog, tmp_path: Path) -> None:
    catalog.publish(catalog.tree.chain[2], catalog.path(1), parent="base")
    assert [step.version for step in make("flatten").chain.steps] == [1, 1, 1, 1]
    with pytest.warns(CompositionWarning, match="1 version stands on another than it was trained on"):
        followed = make("flatten", out=tmp_path / "followed", follow="latest")
    assert [step.version for step in followed.chain.steps] == [2, 1, 1, 1]


# What --out may hold


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_folder_is_taken(make: Compose, tmp_path: Path, mode: Mode) -> None:
    (tmp_path / "out").mkdir()
    make(mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_folder_that_holds_anything_else_is_left_alone(
    make: Compose, catalog: Catalog, tmp_path: Path, mode: Mode
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(Conflict, match=r"thesis\.txt"):
        make(mode)
    (out / "thesis.txt").unlink()
    make(mode)
    for other in (("merge", catalog.path(1)), ("flatten", catalog.path(1)), ({*MODES} - {mode}).pop()):
        arguments = other if isinstance(other, tuple) else (other,)
        with pytest.raises(Conflict, match="it holds tiny/medicine"):
            make(*arguments)
    (out / "more.txt").write_text("mine")
    with pytest.raises(Conflict, match=r"beside this composition \(more\.txt\)"):
        make(mode)


def test_a_lockfile_with_another_version_than_its_digest_names_is_not_this_composition(
    make: Compose, tmp_path: Path
) -> None:
    """No digest in a lockfile covers its paths and numbers: they are compared with what the ref resolves to."""
    make("merge")
    file = tmp_path / "out" / "loratree.json"
    whole = file.read_text()
    for old, new, differs in (
        ('"version": 1', '"version": 2', "tiny/medicine@2 instead of @1"),
        ('"path": "tiny/medicine"', '"path": "tiny/medicin"', "tiny/medicin@1 too; no tiny/medicine@1"),
    ):
        file.write_text(whole.replace(old, new, 1))
        with pytest.raises(Conflict, match=rf"it holds another composition of tiny/medicine/.*: {differs}"):
            make("merge")
    file.write_text(whole)
    make("merge")


def test_a_refusal_names_what_differs_if_the_version_is_the_same(
    make: Compose, catalog: Catalog, tmp_path: Path
) -> None:
    make("flatten")
    for change, differs in (
        (
            {"weights": {"tiny/medicine": 0.5}},
            f"another composition of {catalog.leaf}@1: tiny/medicine@1 at the weight 1 instead of 0.5",
        ),
        ({"limit": Limit(rank=2)}, f"{catalog.leaf}@1 as flatten, expected flatten to rank 2"),
    ):
        with pytest.raises(Conflict) as refused:
            make("flatten", **change)
        expected = f"{tmp_path / 'out'} does not hold what is asked for: it holds "
        assert str(refused.value) == f"{expected}{differs}; choose another folder"


@pytest.mark.parametrize("damage", ["changed", "gone", "edited"])
def test_a_damaged_composition_is_refused_with_what_to_do(make: Compose, tmp_path: Path, damage: str) -> None:
    make("merge")
    weights, lock = tmp_path / "out" / "model.safetensors", tmp_path / "out" / LOCKFILE
    if damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    elif damage == "gone":
        weights.unlink()
    else:
        lock.write_text(lock.read_text().replace('"version": 1', '"version": 2', 1).replace('"F32"', '"F16"'))
        lock.write_text(lock.read_text().replace('"digest": "sha256:', '"digest": "sha256:0', 1))
    with pytest.raises(Conflict, match=r"choose another folder$"):
        make("merge")


def test_a_file_in_the_place_of_the_folder_is_left_alone(make: Compose, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(Conflict, match="not a folder"):
        make("flatten")
    assert (tmp_path / "out").read_text() == "mine"


# What can go wrong


def test_another_checkpoint_in_the_bases_place_is_refused_with_what_differs(make: Compose, tmp_path: Path) -> None:
    other = tiny.llama(tmp_path / "other", seed=9)
    with pytest.raises(Invalid, match=r"_proj\.weight has other values.*and 11 more; give the base's own checkpoint"):
        make("merge", base_directory=other)
    smaller = tiny.llama(tmp_path / "smaller", num_hidden_layers=1, vocab_size=80)
    with pytest.raises(Invalid, match=r"layers\.1.* is missing; .*and \d+ more; give the base's own checkpoint"):
        make("merge", base_directory=smaller)
    assert left(tmp_path) == ["other", "smaller"]


def test_a_base_that_changed_on_disk_after_it_was_added_is_noticed(
    make: Compose, catalog: Catalog, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(catalog.tree.base, tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Invalid, match=r"model\.norm\.weight has other values"):
        make("merge", base_directory=base)
    assert left(tmp_path) == ["base"]


def test_a_base_that_this_machine_does_not_know_is_asked_for(make: Compose, catalog: Catalog, tmp_path: Path) -> None:
    shutil.rmtree(catalog.home / "bases")
    with pytest.raises(NotFound, match="--base, or run loratree base add tiny"):
        make("merge")
    with pytest.raises(NotFound, match="not a directory"):
        make("merge", base_directory=tmp_path / "nowhere")
    make("flatten")


def test_a_disk_that_fills_up_is_left_empty(make: Compose, small_disk: Path) -> None:
    for mode in MODES:
        with pytest.raises(Unavailable, match="No space left"):
            make(mode, out=small_disk / "out")
        assert left(small_disk) == []


def test_a_place_that_cannot_be_written_is_named(make: Compose) -> None:
    with pytest.raises(Unavailable, match="/proc"):
        make("flatten", out=Path("/proc/out"))


def test_a_damaged_adapter_leaves_nothing(make: Compose, catalog: Catalog, tmp_path: Path) -> None:
    for blob in (catalog.home / "blobs").rglob("*"):
        if blob.is_file():
            blob.chmod(0o600)
            blob.write_bytes(blob.read_bytes()[:-1] + b"\x55")
    with pytest.raises(Corrupt):
        make("merge")
    assert left(tmp_path) == []


CHILD = """
import sys
from pathlib import Path
from loratree_composer.compose_files import compose
from loratree_registry.connect import connect
print(compose(connect(), "large", "merge", Path(sys.argv[1]), home=Path(sys.argv[2])).artifact.digest)
"""


def writing_child(catalog: Catalog, tmp_path: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of writing a merge of the base `large` into tmp_path/out."""
    large = tiny.llama(tmp_path / "large", vocab_size=150_000)  # 38 MB: it takes a while to write
    manifest = read_base(large)
    catalog.registry.add_base("large", manifest)
    remember_base(catalog.home, manifest.digest, large)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "out"), str(catalog.home)],
        env=os.environ | {"LORATREE_HOME": str(catalog.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while child.poll() is None and not list(tmp_path.glob(".out.*/out/model.safetensors")):
        time.sleep(0.001)
    return child


@pytest.mark.parametrize("first", ["the same", "another"])
def test_a_compose_that_another_process_overtakes_looks_again(catalog: Catalog, tmp_path: Path, first: str) -> None:
    out, child = tmp_path / "out", writing_child(catalog, tmp_path)
    child.send_signal(signal.SIGSTOP)
    ref = "large" if first == "the same" else "tiny"
    lockfile = compose(catalog.registry, ref, "merge", out, home=catalog.home)
    child.send_signal(signal.SIGCONT)
    printed, said = child.communicate(timeout=60)
    assert left(tmp_path) == ["large", "out"]
    assert read_lockfile(out) == lockfile
    if first == "the same":
        assert (child.returncode, printed.strip()) == (0, lockfile.artifact.digest)
    else:
        assert f"Conflict: {out} does not hold what is asked for" in said


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_compose_that_is_killed_leaves_no_folder_and_the_next_one_sweeps(
    catalog: Catalog, tmp_path: Path, how: signal.Signals
) -> None:
    out, child = tmp_path / "out", writing_child(catalog, tmp_path)
    child.send_signal(how)
    child.communicate(timeout=60)
    assert child.returncode != 0
    assert not out.exists()
    assert (left(tmp_path) == ["large"]) == (how == signal.SIGINT)
    compose(catalog.registry, "large", "merge", out, home=catalog.home)
    assert left(tmp_path) == ["large", "out"]
