"""loratree log, dependents and cache, over the real registry."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.conftest import CHAIN, LEAF, Shell
from tests.registry.serving import command_serving

MED = "tiny/medicine"


def test_log_tells_what_happened_newest_first(shell: Shell) -> None:
    shell("alias", "set", MED, "stable", "latest")
    shell("alias", "set", MED, "stable", "1")
    shell("withdraw", f"{LEAF}@1", "--reason", "it diverges")
    shell("alias", "rm", MED, "stable")
    lines = shell("log", "--limit", "4").stdout.splitlines()
    assert lines[0] == "when\tpath\twhat"
    said = [line.split("\t", 1)[1] for line in lines[1:]]
    assert said[0] == f"{MED}\talias deleted: stable, was @1"
    assert said[1] == f"{LEAF}\tversion withdrawn: @1, reason it diverges"
    assert said[2].startswith(f"{MED}\talias set: stable at @1")
    assert said[3].startswith(f"{LEAF}\tversion published: @1, digest ")
    assert said[3].endswith(f", pin {CHAIN[-2][0]}@1")
    events = json.loads(shell("log", LEAF, "--limit", "1000", "--json").stdout)
    assert [event["kind"] for event in events] == ["version-withdrawn", "version-published", "node-created"]
    assert "is not known (did you mean tiny/medicine?)" in shell("log", "tiny/medicin", check=False).stderr


def test_the_log_of_everything_merges_the_bases(shell: Shell, tmp_path: Path) -> None:
    shell("base", "add", "other", tiny.llama(tmp_path / "other", seed=7))
    shell("base", "set", "tiny", "--source", "example/tiny")
    shell("base", "set", "other", "--source", "example/other")
    events = json.loads(shell("log", "--json", "--limit", "3").stdout)
    assert [(event["path"], event["kind"]) for event in events] == [
        ("other", "base-source-set"),
        ("tiny", "base-source-set"),
        ("other", "base-added"),
    ]


def test_dependents_are_what_was_trained_on_a_version(shell: Shell) -> None:
    above, below = CHAIN[0][0], CHAIN[1][0]
    lines = shell("dependents", f"{above}@1").stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["version", f"{below}@1"]
    assert [each["path"] for each in json.loads(shell("dependents", above, "--json").stdout)] == [below]
    none = shell("dependents", LEAF)
    assert (none.stdout, none.stderr) == (
        "",
        f"nothing was trained on {LEAF}: `loratree tree` shows all that there is\n",
    )
    assert shell("dependents", LEAF, "--json").stdout == "[]\n"
    refused = shell("dependents", f"{above}@7", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")


@pytest.fixture
def client(shell: Shell, tmp_path: Path) -> Iterator[Shell]:
    """A client of a server over the filled registry, with a home of its own."""
    with command_serving(shell.home) as url:
        yield Shell(tmp_path / "client", url=url)


def test_the_cache_lists_what_was_fetched_and_prune_frees_it(client: Shell, tmp_path: Path) -> None:
    assert client("cache", "ls").stdout == "digest\tsize\tlast used\n"
    client("pull", LEAF, "--out", tmp_path / "out")
    [file] = json.loads(client("cache", "ls", "--json").stdout)
    assert client("cache", "ls").stderr.startswith("1 file, ")
    assert client("cache", "prune", "--keep", "1 GB").stdout == ""
    assert client("cache", "prune", "--unused", "0s", "--dry-run").stdout.splitlines() == [file["sha256"]]
    assert json.loads(client("cache", "prune", "--keep", "0", "--json").stdout) == [file]
    assert json.loads(client("cache", "ls", "--json").stdout) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what may go: --keep SIZE"),
        (["--keep", "much"], "--keep is 'much': expected a size, such as 500MB"),
        (["--keep", "-1"], "--keep is '-1': expected a size"),
        (["--unused", "1w"], "--unused is '1w': expected a number and a unit"),
    ],
)
def test_prune_does_nothing_that_was_not_asked_for(shell: Shell, arguments: list[str], said: str) -> None:
    refused = shell("cache", "prune", *arguments, check=False)
    assert refused.returncode == 2
    assert said in refused.stderr
