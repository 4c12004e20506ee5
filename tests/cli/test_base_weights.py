"""A base's weights by the command line: stored once, fetched by a machine that never had them, composed on there."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.conftest import LEAF, Filled, Shell
from tests.registry.serving import command_serving

MODEL = "model.safetensors"


@pytest.fixture
def base(filled: Filled, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled.base, tmp_path / "base"))


def stored(shell: Shell) -> list[bool]:
    return [base["stored"] for base in json.loads(shell("base", "ls", "--json").stdout)]


def test_a_machine_that_never_had_the_base_pulls_it_and_composes(
    filled: Filled, shell: Shell, base: Path, tmp_path: Path
) -> None:
    (base / "tokenizer.json").write_text("{}")
    (base / "pytorch_model.bin").write_bytes(b"pickled")
    here, there = tmp_path / "here", tmp_path / "there"
    shell("compose", LEAF, "--mode", "merge", "--out", here, "--base", filled.base)
    with command_serving(shell.home) as url:
        client = Shell(tmp_path / "client", url=url)
        refused = client("base", "pull", "tiny", "--out", tmp_path / "pulled", check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "`loratree base push tiny DIR`" in refused.stderr
        assert stored(client) == [False]
        pushed = client("base", "push", "tiny", base)
        assert "not stored: pytorch_model.bin" in pushed.stderr
        assert stored(client) == stored(shell) == [True]
        assert json.loads(client("base", "show", "tiny", "--json").stdout)["stored"] is True
        assert "0 of 4 files were sent" in client("base", "push", "tiny", base).stderr
        unknown = client("compose", LEAF, "--mode", "merge", "--out", there, check=False)
        assert "`loratree base pull tiny --out DIR`" in unknown.stderr
        shutil.rmtree(base)
        client("base", "pull", "tiny", "--out", tmp_path / "pulled")
        assert not (tmp_path / "pulled" / "pytorch_model.bin").exists()
        client("compose", LEAF, "--mode", "merge", "--out", there)
    assert (there / MODEL).read_bytes() == (here / MODEL).read_bytes()


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_weights_that_are_in_an_export_are_pulled_and_composed_on_as_import_says(
    shell: Shell, filled: Filled, tmp_path: Path, name: str
) -> None:
    shell("base", "push", "tiny", filled.base)
    said = shell("export", "--out", tmp_path / name).stderr
    assert said.splitlines()[1:] == ["the weights of tiny are in it"]
    fresh = Shell(tmp_path / "fresh")
    said = fresh("import", tmp_path / name).stderr.splitlines()[-1]
    command = "loratree base pull tiny --out DIR"
    assert said == f"the weights of tiny came along: `{command}` writes them to a folder for composing"
    fresh(*command.replace("DIR", str(tmp_path / "pulled")).split()[1:])
    fresh("compose", LEAF, "--mode", "merge", "--out", tmp_path / "merged")
    assert len(fresh("import", tmp_path / name).stderr.splitlines()) == 1  # the folder is known now


def test_weights_that_are_in_no_export_are_added_and_composed_on_as_import_says(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    said = shell("export", LEAF, "--out", tmp_path / "out").stderr
    assert said.splitlines()[1:] == [
        "the weights of tiny are not in it, as they are not stored: `loratree base push tiny DIR` stores them for the "
        "next export"
    ]
    fresh = Shell(tmp_path / "fresh")
    said = fresh("import", tmp_path / "out").stderr.splitlines()[-1]
    command = "loratree base add tiny DIR"
    assert said == f"the weights of tiny are not here: `{command}` names a folder that has them, for composing"
    fresh(*command.replace("DIR", str(filled.base)).split()[1:])
    fresh("compose", LEAF, "--mode", "merge", "--out", tmp_path / "merged")
    known = shell("import", tmp_path / "out", "--json")
    assert (known.stderr, len(shell("import", tmp_path / "out").stderr.splitlines())) == ("", 1)


def test_of_several_bases_an_export_and_an_import_say_which_have_their_weights(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    shell("base", "push", "tiny", filled.base)
    for number in range(7):
        shell("base", "add", f"other{number}", filled.base)
    said = shell("export", "--out", tmp_path / "out").stderr.splitlines()[1]
    assert said == (
        "the weights of tiny are in it, but the weights of other0; other1; other2; and 4 more are not in it, as they "
        "are not stored: `loratree base push NAME DIR` stores them for the next export"
    )
    said = Shell(tmp_path / "fresh")("import", tmp_path / "out").stderr
    assert (said.count("are not here: "), said.count("came along: ")) == (5, 0)
    assert "3 more bases without a folder on this machine: `loratree base ls` says which are stored\n" in said


def test_a_base_is_added_and_stored_in_one(base: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path / "home")
    added = shell("base", "add", "tiny", base, "--store", "--json")
    assert json.loads(added.stdout)["stored"] is True
    assert stored(shell) == [True]


@pytest.mark.parametrize("damage", ["other weights", "no weights", "an adapter beside them"])
def test_a_folder_that_does_not_hold_the_base_is_refused_and_nothing_is_sent(
    shell: Shell, base: Path, damage: str
) -> None:
    weights = (base / MODEL).read_bytes()
    if damage == "other weights":
        (base / MODEL).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    elif damage == "no weights":
        (base / MODEL).unlink()
    else:
        (base / "adapter_config.json").write_text("{}")
    before = shell.state()
    refused = shell("base", "push", "tiny", base, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert shell.state() == before


@pytest.mark.parametrize("name", [MODEL, "tokenizer.json", "merges.txt"])
def test_a_file_outside_of_a_models_folder_is_neither_stored_nor_composed(
    shell: Shell, base: Path, tmp_path: Path, name: str
) -> None:
    secret = tmp_path / "secret"
    if name == MODEL:
        (base / name).rename(secret)
    else:
        secret.write_text("{}")
    (base / name).symlink_to(secret)
    before = shell.state()
    compose = ("compose", LEAF, "--mode", "merge", "--out", tmp_path / "out", "--base", base)
    for command in (("base", "push", "tiny", base), ("base", "add", "other", base), compose):
        refused = shell(*command, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert f"{name} is a link to {secret}, outside of its folder" in refused.stderr
    assert shell.state() == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", MODEL])
def test_a_pipe_in_a_models_folder_is_never_waited_for(shell: Shell, base: Path, name: str) -> None:
    (base / name).unlink(missing_ok=True)
    os.mkfifo(base / name)
    before = shell.state()
    for command in (("base", "push", "tiny", base), ("base", "add", "other", base)):
        done = shell(*command, check=False)
        # A pipe that is no part of the model is no part of the base either.
        assert done.returncode == int(name != "tokenizer.json")
    assert (shell.state() == before) is (name != "tokenizer.json")


def test_a_base_is_renamed_in_its_source_and_removed_with_its_stored_weights(
    shell: Shell, filled: Filled, tmp_path: Path
) -> None:
    other = tiny.llama(tmp_path / "other", seed=5)
    shell("base", "add", "other", other, "--store")
    assert "example/other" in shell("base", "set", "other", "--source", "example/other").stdout
    assert json.loads(shell("base", "show", "other", "--json").stdout)["source"] == "example/other"
    assert json.loads(shell("base", "set", "other", "--source", "", "--json").stdout)["source"] is None
    state = shell.state()
    refused = shell("base", "rm", "tiny", check=False)
    assert (refused.returncode, "versions depend on it, delete them first" in refused.stderr) == (1, True)
    refused = shell("rm", "tiny/medicine", check=False)
    assert (refused.returncode, "tiny/medicine is not empty" in refused.stderr) == (1, True)
    assert shell.state() == state
    assert "the base other is removed" in shell("base", "rm", "other").stderr
    assert "is not known" in shell("base", "show", "other", check=False).stderr
    collected = shell("gc", "--grace", "0s")
    assert "3 blobs" in collected.stderr  # config.json, generation_config.json and the weights
    shell("base", "add", "other", filled.base)  # the name is free for other weights


def test_an_empty_node_is_removed(shell: Shell) -> None:
    refused = shell("rm", "tiny/medicin", check=False)
    assert (refused.returncode, "tiny/medicin is not known" in refused.stderr) == (1, True)
    refused = shell("rm", "tiny", check=False)
    assert "remove it by `loratree base rm tiny`" in refused.stderr
