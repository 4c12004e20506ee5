"""What somebody types in the first hour, before reading anything: it is done, or answered by what to write instead."""

import gzip
import re
import shutil
from pathlib import Path
from typing import Any

import click
import pytest

from loratree_cli import guesses
from loratree_cli.main import COMMANDS, cli
from tests.cli.conftest import LEAF, Filled, Shell

MED = "tiny/medicine"


def refused(shell: Shell, *arguments: str | Path, status: int = 1, cwd: Path | None = None) -> str:
    """The last line of a command that is refused and changes nothing."""
    before = shell.state()
    done = shell(*arguments, check=False, cwd=cwd)
    assert (done.returncode, done.stdout, shell.state()) == (status, "", before), done
    return done.stderr.splitlines()[-1]


def test_a_base_that_is_added_again_is_told_as_such(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    first = shell("base", "add", "other", filled.base).stderr
    assert "recorded before" not in first
    before = shell.state()
    again = shell("base", "add", "other", filled.base)
    assert "it was recorded before: nothing changed in the registry\n" in again.stderr
    assert "its folder" not in again.stderr
    assert shell.state() == before
    kept = shell("base", "add", "other", filled.base, "--source", "org/other").stderr
    assert "its source is not set, as before: `loratree base set other --source org/other` changes it\n" in kept
    assert "it has no source" not in kept
    shutil.copytree(filled.base, tmp_path / "copy")
    moved = shell("base", "add", "other", tmp_path / "copy").stderr
    assert f"its folder on this machine is now {tmp_path}/copy, no longer {filled.base}\n" in moved
    [record] = (shell.home / "bases").glob("*.json")
    record.write_text("{")
    assert "its folder" not in shell("base", "add", "other", filled.base).stderr
    stored = shell("base", "add", "other", filled.base, "--store").stderr
    assert "it was recorded before\n" in stored


def test_a_base_is_added_by_its_name_and_its_folder(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    shutil.copytree(filled.base, tmp_path / "model")
    turned = refused(shell, "base", "add", "./model", "other", status=2, cwd=tmp_path)
    assert turned == "Error: the name comes first: loratree base add other ./model"
    file = filled.base / "model.safetensors"
    assert refused(shell, "base", "add", "other", file).endswith(
        f"is a file: give the folder of the model, {filled.base}"
    )
    adapter = filled.adapters[MED]
    assert "holds an adapter and no model (config.json is missing): give the folder of its base, and then " in refused(
        shell, "base", "add", "other", adapter
    )


def test_a_folder_of_adapters_is_told_how_all_are_published(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    shutil.copytree(filled.adapters[MED], tmp_path / "many" / "law")
    said = refused(shell, "publish", "many", "tiny/firm", cwd=tmp_path)
    assert "publish one of these, or make a manifest of all by `loratree publish --from-dir many PATH`" in said
    assert '"tiny/firm/law"' in shell("publish", "--from-dir", "many", "tiny/firm", cwd=tmp_path).stdout


def test_a_composition_is_told_from_an_adapter_that_was_trained_on_it(shell: Shell, tmp_path: Path) -> None:
    shell("compose", MED, "--mode", "merge", "--out", tmp_path / "train")
    said = refused(shell, "publish", tmp_path / "train", f"{MED}/new")
    assert said.endswith(
        "is a composition that loratree wrote, and no adapter: publish the adapter that was trained on it"
    )


def test_an_empty_registry_has_no_log(tmp_path: Path) -> None:
    done = Shell(tmp_path / "empty")("log")
    assert done.stdout == ""
    assert "is empty: `loratree base add NAME DIR` records a base model" in done.stderr


@pytest.mark.parametrize("given", ["1", "@1", f"{MED}@1", "latest", "@latest"])
def test_an_alias_is_set_to_a_version_however_it_is_written(given: str, shell: Shell) -> None:
    assert shell("alias", "set", MED, "stable", given).stderr == f"{MED}@stable is version 1\n"


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["stable", MED, "1"], 2, f"the path comes first: loratree alias set {MED} stable 1"),
        ([MED, "1", "stable"], 2, f"the alias comes before the version: loratree alias set {MED} stable 1"),
        (["stable", f"{MED}@1"], 2, f"the version is a word of its own: loratree alias set {MED} stable 1"),
        ([f"{MED}@1", "stable"], 2, f"the version is a word of its own: loratree alias set {MED} stable 1"),
        ([f"{MED}@stable", "1"], 2, f"the version is a word of its own: loratree alias set {MED} stable 1"),
        ([MED, "stable"], 2, f"the version is missing: loratree alias set {MED} stable 1"),
        (["stable", MED], 2, f"the version is missing: loratree alias set {MED} stable 1"),
        (["tiny/nowhere", "stable"], 2, "the version is missing: loratree alias set tiny/nowhere stable NUMBER"),
        ([MED, f"{MED}@1"], 2, f"the alias is missing, such as stable: loratree alias set {MED} stable 1"),
        ([MED, "@1"], 2, f"the alias is missing, such as stable: loratree alias set {MED} stable 1"),
        ([f"{MED}@1", "stable", "1"], 1, f"names a version, and only a path fits here: write '{MED}'"),
        ([MED, "@stable", "1"], 1, "such as 'stable'"),
        ([MED, "stable", "v1"], 1, f"(did you mean {MED}@1?)"),
    ],
)
def test_an_alias_in_another_order_is_told_the_right_one(
    arguments: list[str], status: int, says: str, shell: Shell
) -> None:
    assert says in refused(shell, "alias", "set", *arguments, status=status)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([f"{MED}@stable"], f"the alias is a word of its own: loratree alias rm {MED} stable"),
        ([MED], f"the alias is missing: loratree alias rm {MED} NAME"),
        (["stable", MED], f"the path comes first: loratree alias rm {MED} stable"),
    ],
)
def test_an_alias_to_remove_in_another_order_is_told_the_right_one(
    arguments: list[str], says: str, shell: Shell
) -> None:
    assert says in refused(shell, "alias", "rm", *arguments, status=2)


def test_an_alias_without_a_version_is_told_so_also_where_no_registry_answers(shell: Shell) -> None:
    away = Shell(shell.home, url="http://127.0.0.1:1")
    said = refused(away, "alias", "set", MED, "stable", status=2)
    assert said.endswith(f"the version is missing: loratree alias set {MED} stable NUMBER")
    assert "alias set [OPTIONS] PATH NAME VERSION\n" in shell("alias", "set", "--help").stdout


def test_a_digest_is_taken_as_the_screens_print_it(shell: Shell, tmp_path: Path) -> None:
    short = shell("show", MED).stdout.splitlines()[2].split("\t")[9]
    assert re.fullmatch("[0-9a-f]{12}", short)
    for ref in (f"{MED}@{short}", f"{MED}@sha256:{short}"):
        assert shell("show", ref).stdout == shell("show", f"{MED}@1").stdout
        assert shell("resolve", ref).stdout == shell("resolve", f"{MED}@1").stdout
        assert shell("dependents", ref).stdout == shell("dependents", f"{MED}@1").stdout
        assert shell("verify", ref).stderr == shell("verify", f"{MED}@1").stderr
    shell("pull", f"{MED}@{short}", "--out", tmp_path / "pulled")
    shell("compose", f"{MED}@{short}", "--mode", "flatten", "--out", tmp_path / "flat")
    assert shell("withdraw", f"{MED}@{short}", "--reason", "old").stderr == f"{MED}@1 is withdrawn: old\n"
    assert f"a digest follows the path of its node, as in tiny/medicine@{short}" in refused(shell, "show", short)


def test_a_part_of_an_export_is_told_what_to_import(shell: Shell, tmp_path: Path) -> None:
    shell("export", LEAF, "--out", tmp_path / "out")
    shell("export", LEAF, "--out", tmp_path / "out.tar")
    for name in ("loratree-export.json", "nodes.jsonl"):
        said = refused(shell, "import", name, cwd=tmp_path / "out")
        assert said == f"loratree: {name} is one file of an export: give its folder, {tmp_path}/out"
    (tmp_path / "out.tar.gz").write_bytes(gzip.compress((tmp_path / "out.tar").read_bytes()))
    said = refused(shell, "import", tmp_path / "out.tar.gz")
    assert said.endswith("is compressed: unpack it by gunzip, and import the .tar file")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("list", "No such command 'list': `loratree ls` lists the bases"),
        ("help publish", "`loratree COMMAND --help` explains one"),
        ("--json ls", "No such option '--json': it goes after a command, as in `loratree ls --json`"),
        ("version", "`loratree --version` prints the release"),
        ("lineag x", "No such command 'lineag'. Did you mean 'lineage'?"),
        ("alias list tiny", "No such command 'list': `loratree alias ls PATH`"),
        ("alias tiny/medicine stable 1", "No such command 'tiny/medicine': `loratree alias` has set, ls, rm"),
        ("base delete tiny", "No such command 'delete': `loratree base rm NAME`"),
        ("cache clear", "No such command 'clear': `loratree cache prune --keep 0` removes all"),
        ("show tiny/medicine 1", "a version is written at its path, as in `loratree show tiny/medicine@1`"),
        ("resolve tiny/medicine v1", "as in `loratree resolve tiny/medicine@1`"),
        ("show tiny/medicine --version 2", "No such option '--version': a version is written at its path, as in"),
        ("delete tiny/medicine 1", "as in `loratree delete tiny/medicine@1`"),
        ("withdraw tiny/medicine@1 diverges", "a reason is an option, as in --reason diverges"),
        ("withdraw tiny/medicine@1 too --reason diverges", "Got unexpected extra argument (too)"),
        ("compose tiny/medicine --mode stack --out x", "in Python: `loratree.Composer(model).use(REF)`"),
        ("compose tiny/medicine --mode blend --out x", "'blend' is not one of 'merge', 'flatten'."),
    ],
)
def test_a_wrong_usage_says_what_to_write(command: str, says: str, shell: Shell) -> None:
    assert says in refused(shell, *command.split(), status=2)


def test_every_guess_at_a_command_is_no_command_and_is_led_to_one() -> None:
    for group, words in guesses.COMMANDS.items():
        known = COMMANDS if not group else command_of(group).commands
        assert not set(words) & set(known)
        for remedy in words.values():
            named = re.findall(r"`loratree ([a-z]+)(?: ([a-z]+))?[ `]", remedy)
            assert named or remedy.count("`loratree --") or "loratree.Composer" in remedy, remedy
            for first, second in named:
                member = command_of(first)
                assert not isinstance(member, click.Group) or second in member.commands, remedy


def command_of(name: str) -> Any:
    """A command of `loratree` by its name."""
    return cli.get_command(click.Context(cli), name)
