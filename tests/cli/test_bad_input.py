"""Bad input: one sentence, exit status 1 (2 for wrong usage), and nothing half-written."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.cli.conftest import Filled, Shell

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
TARGET = "tiny/law"
A_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

Breakage = Callable[[Path], None]


def empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


def pickled(directory: Path) -> None:
    torch.save(load_file(directory / WEIGHTS), directory / "adapter_model.bin")
    (directory / WEIGHTS).unlink()


def truncated(directory: Path) -> None:
    data = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(data[:-100])


def duplicate_names(directory: Path) -> None:
    data = (directory / WEIGHTS).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = data[8 : 8 + length].decode().rstrip()
    entry = json.dumps(json.loads(header)[A_KEY])
    header = header[:-1] + f',"{A_KEY}":{entry}}}'
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header.encode() + data[8 + length :])


def edited(change: Callable[[dict[str, torch.Tensor]], None]) -> Breakage:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS)

    return apply


def config(**fields: object) -> Breakage:
    def apply(directory: Path) -> None:
        document = json.loads((directory / CONFIG).read_text())
        (directory / CONFIG).write_text(json.dumps(document | fields))

    return apply


def not_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors[A_KEY][1, 2] = float("nan")


def wrong_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors[A_KEY] = torch.zeros(4, 31)


def unknown_module(tensors: dict[str, torch.Tensor]) -> None:
    for half in ("lora_A", "lora_B"):
        key = A_KEY.replace("lora_A", half)
        tensors[key.replace("layers.0", "layers.9")] = tensors.pop(key)


BROKEN: dict[str, tuple[Breakage, str]] = {
    "an empty directory": (empty, "is empty"),
    "pickled weights": (pickled, "adapter_model.bin"),
    "a truncated file": (truncated, WEIGHTS),
    "duplicate tensor names": (duplicate_names, A_KEY),
    "a NaN": (edited(not_a_number), A_KEY),
    "a wrong shape": (edited(wrong_shape), "[4, 31]"),
    "an unknown module": (edited(unknown_module), "model.layers.9.self_attn.q_proj"),
    "an unknown PEFT variant": (config(use_frobnication=True), "use_frobnication"),
    "another PEFT method": (config(peft_type="IA3"), "IA3"),
    "DoRA": (config(use_dora=True), "use_dora"),
}


def refused(shell: Shell, *arguments: str | Path, status: int = 1) -> str:
    """Runs a command that must be refused with one sentence, and returns the sentence."""
    before = shell.state()
    done = shell(*arguments, check=False)
    assert done.returncode == status, done
    assert "Traceback" not in done.stderr
    assert shell.state() == before
    if status == 1:
        assert done.stdout == ""
        assert done.stderr.startswith("loratree: ")
        assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="session")
def good_adapter(filled: Filled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.adapter(filled.base, tmp_path_factory.mktemp("good") / "adapter", seed=5, rank=4)


@pytest.fixture
def adapter(good_adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_adapter, tmp_path / "adapter"))


@pytest.mark.parametrize("case", BROKEN)
def test_publish_refuses(case: str, shell: Shell, adapter: Path) -> None:
    breakage, named = BROKEN[case]
    breakage(adapter)
    assert named in refused(shell, "publish", adapter, TARGET)


@pytest.mark.parametrize("path", ["tiny/../law", "tiny/Law", f"tiny/{'a' * 200}", "tiny//law", "tiny/law/", "tiny"])
def test_publish_refuses_a_path_that_is_none(path: str, shell: Shell, adapter: Path) -> None:
    refused(shell, "publish", adapter, path)


def test_publish_refuses_an_unknown_base(shell: Shell, adapter: Path) -> None:
    assert "nobody" in refused(shell, "publish", adapter, "nobody/law")


def test_publish_tells_a_path_without_its_base_from_a_base(shell: Shell, adapter: Path) -> None:
    assert "the base medicine is not known (a path begins with its base: did you mean tiny/medicine?)" in refused(
        shell, "publish", adapter, "medicine"
    )
    assert "tiny is a base, which has no versions" in refused(shell, "publish", adapter, "tiny")
    assert "path '/tiny/law' has a slash too many: write 'tiny/law'" in refused(shell, "publish", adapter, "/tiny/law")


def test_publish_refuses_a_parent_of_another_base(shell: Shell, adapter: Path, tmp_path: Path) -> None:
    shell("base", "add", "other", tiny.llama(tmp_path / "other", seed=3))
    shell("publish", tiny.adapter(tmp_path / "other", tmp_path / "o"), "other/medicine")
    assert "other/medicine" in refused(shell, "publish", adapter, TARGET, "--parent", "other/medicine")


def test_publish_asks_for_the_parent_where_the_adapter_names_the_plain_base(shell: Shell, adapter: Path) -> None:
    assert "--parent" in refused(shell, "publish", adapter, "tiny/medicine/oncology")


def test_base_add_refuses_other_weights_under_a_taken_name(shell: Shell, tmp_path: Path) -> None:
    assert "tiny" in refused(shell, "base", "add", "tiny", tiny.llama(tmp_path / "other", seed=3))


@pytest.mark.parametrize("arguments", [["ls", "tiny"], ["resolve", "tiny/medicine"], ["tree", "tiny"]])
def test_an_unreachable_registry_is_said_in_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    shell = Shell(tmp_path / "home", url="http://127.0.0.1:9")
    done = shell(*arguments, check=False)
    assert done.returncode == 1
    assert "http://127.0.0.1:9" in done.stderr
    assert done.stderr.count("\n") == 1


def test_upgrading_a_served_registrys_database_from_a_client_is_refused(tmp_path: Path) -> None:
    done = Shell(tmp_path / "home", url="http://127.0.0.1:9")("db", "upgrade", check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize(
    "arguments", [["publish"], ["compose", "tiny", "--mode", "blend", "--out", "x"], ["frobnicate"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], shell: Shell) -> None:
    refused(shell, *arguments, status=2)


@pytest.mark.parametrize(
    "ref", ["tiny/nothing", "tiny/medicine@9", "tiny/medicine@stable", "tiny/medicine@", "tiny/medicine@-1"]
)
def test_resolve_refuses_what_is_not_there(ref: str, shell: Shell) -> None:
    refused(shell, "resolve", ref)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["withdraw", "tiny", "--reason", "x"], "tiny is a base, which has no versions"),
        (["base", "pull", "tiny/medicine", "--out", "out"], "tiny/medicine is no base: name one alone, such as tiny"),
        (["export", "tiny/medicine@1", "--out", "out"], "give a path without a selector, such as tiny/medicine"),
        (["export", "--out", "x.tar.gz"], "name a .tar file or a folder"),
        (["export", "--out", "x.zip"], "name a .tar file or a folder"),
    ],
)
def test_a_refusal_suggests_nothing_that_is_refused_too(arguments: list[str], says: str, shell: Shell) -> None:
    assert says in refused(shell, *arguments)


@pytest.mark.parametrize("text", ["x\ny", "a\u202eb", "a\u2066b"])
def test_a_note_or_a_reason_that_may_read_as_another_is_refused_before_a_byte_is_sent(
    text: str, shell: Shell, adapter: Path
) -> None:
    assert "take out control characters" in refused(shell, "publish", adapter, "tiny/law", "--note", text)
    assert "take out control characters" in refused(shell, "withdraw", "tiny/medicine@1", "--reason", text)


def test_a_sample_that_is_too_large_is_told_the_most(shell: Shell) -> None:
    assert "at most 999999999" in refused(shell, "verify", "--sample", "9999999999", status=2)


def test_compose_refuses_a_folder_that_holds_something_else(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    refused(shell, "compose", "tiny/medicine", "--mode", "merge", "--out", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_compose_refuses_a_folder_that_holds_another_composition(shell: Shell, tmp_path: Path) -> None:
    shell("compose", "tiny/medicine", "--mode", "flatten", "--out", tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    refused(shell, "compose", "tiny/medicine/cardiology", "--mode", "flatten", "--out", tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_a_flipped_byte_in_the_store_stops_pull_and_compose(shell: Shell, tmp_path: Path) -> None:
    digest = json.loads(shell("show", "tiny/medicine@1", "--json").stdout)["files"][0]["sha256"].removeprefix("sha256:")
    blob = next(file for file in shell.home.rglob(digest) if "blobs" in file.parts)
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o600)
    blob.write_bytes(data)
    assert digest in refused(shell, "pull", "tiny/medicine@1", "--out", tmp_path / "pulled")
    assert digest in refused(shell, "compose", "tiny/medicine", "--mode", "flatten", "--out", tmp_path / "flat")
    assert not (tmp_path / "pulled").exists()
    assert not (tmp_path / "flat").exists()
