"""What every command takes: --json, --quiet and --verbose; and what --json prints where it was missing once."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import click
import pytest

from loratree_cli.main import COMMANDS, cli
from loratree_registry.embedded.registry import EmbeddedRegistry, open_embedded
from loratree_registry.settings import Settings
from tests.cli.conftest import LEAF, Filled, Shell

# `serve` prints its URL, and `demo` writes its results into its folder.
WITHOUT_RECORDS = {"serve", "demo"}


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its whole name."""
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)  # type: ignore[attr-defined] # a LazyGroup
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", command.commands[inner]) for inner in command.commands)
        else:
            assert command is not None
            yield name, command


def test_every_command_takes_them_once() -> None:
    for name, command in commands():
        options = [option for parameter in command.params for option in parameter.opts]
        wanted = ["--quiet", "--verbose"] + ([] if name in WITHOUT_RECORDS else ["--json"])
        assert [options.count(option) for option in wanted] == [1] * len(wanted), name


def record(shell: Shell, *arguments: str | Path) -> dict[str, object]:
    done = shell(*arguments, "--json")
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_what_was_removed_is_a_record(shell: Shell, filled: Filled) -> None:
    shell("alias", "set", "tiny/medicine", "stable", "1")
    [alias] = json.loads(shell("alias", "ls", "tiny/medicine", "--json").stdout)
    assert record(shell, "alias", "rm", "tiny/medicine", "stable") == alias
    shell("base", "add", "other", filled.base)
    base = json.loads(shell("base", "show", "other", "--json").stdout)
    assert record(shell, "base", "rm", "other") == base
    with closing(connect_home(shell)) as registry:
        registry.create_node("tiny/wrong")
    [node] = [node for node in json.loads(shell("ls", "tiny", "--json").stdout) if node["path"] == "tiny/wrong"]
    assert record(shell, "rm", "tiny/wrong") == node


def connect_home(shell: Shell) -> EmbeddedRegistry:
    return open_embedded(Settings.from_environment(shell.environment()))


def test_what_was_downloaded_is_a_record(shell: Shell, filled: Filled, tmp_path: Path) -> None:
    pulled = record(shell, "pull", LEAF, "--out", tmp_path / "adapter")
    shown = json.loads(shell("show", f"{LEAF}@1", "--json").stdout)
    assert pulled == {name: value for name, value in shown.items() if name not in ("documents", "kinds")}
    shell("base", "push", "tiny", filled.base)
    base = record(shell, "base", "pull", "tiny", "--out", tmp_path / "base")
    assert base == json.loads(shell("base", "show", "tiny", "--json").stdout)


def test_the_databases_revision_is_a_record(shell: Shell) -> None:
    revision = shell("db", "upgrade").stderr.removesuffix("\n").rpartition(" ")[2]
    assert record(shell, "db", "upgrade") == {"revision": revision}


@pytest.mark.parametrize(
    "command",
    [
        ["pull", "tiny/nothing", "--out", "out"],
        ["base", "pull", "nothing", "--out", "out"],
        ["base", "rm", "nothing"],
        ["alias", "rm", "tiny/medicine", "nothing"],
        ["rm", "tiny/nothing"],
        ["compose", "tiny/nothing", "--mode", "merge", "--out", "out"],
    ],
)
def test_a_refusal_is_a_record_too(command: list[str], shell: Shell, tmp_path: Path) -> None:
    refused = shell(*command, "--json", "--quiet", check=False, cwd=tmp_path)
    error = json.loads(refused.stdout)
    assert (refused.returncode, error["details"]) == (1, [])
    assert refused.stderr == f"loratree: {error['error']}\n"
    assert list(tmp_path.glob("*out*")) == []


@pytest.mark.parametrize(
    "command",
    ["ls", "ls tiny", "tree", "show tiny/medicine", "verify", "cache ls", f"resolve {LEAF}", f"lineage {LEAF}"],
)
def test_a_quiet_screen_says_nothing_beside_its_result(command: str, shell: Shell) -> None:
    done = shell("--quiet", *command.split())
    assert (done.returncode, done.stderr) == (0, "")


def test_a_quiet_empty_registry_says_nothing(tmp_path: Path) -> None:
    assert Shell(tmp_path / "empty", variables={"LORATREE_UNKNOWN": "1"})("ls", "--quiet").stderr == ""
