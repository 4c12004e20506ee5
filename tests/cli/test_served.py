"""The same commands over HTTP: `loratree serve` in a process of its own, and LORATREE_URL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.conftest import LEAF, Filled, Shell
from tests.registry.serving import command_serving

READING = [
    ["ls", "--json"],
    ["ls", "tiny/medicine", "--json"],
    ["tree", "tiny", "--json"],
    ["tree", "tiny"],
    ["show", "tiny/medicine", "--json"],
    ["show", f"{LEAF}@1", "--json"],
    ["resolve", LEAF, "--json"],
    ["resolve", LEAF, "--follow", "latest", "--json"],
    ["resolve", LEAF],
    ["resolve", LEAF, "--weight", "tiny/medicine=0.1", "--weight", f"{LEAF}=-0", "--json"],
    ["resolve", LEAF, "--weight", "tiny/medicine=1e-7"],
    ["lineage", LEAF, "--json"],
    ["alias", "ls", "tiny/medicine", "--json"],
    ["log"],
    ["log", "tiny/medicine", "--json"],
    ["dependents", "tiny/medicine"],
    ["dependents", "tiny/medicine@1", "--json"],
]


@pytest.fixture
def remote(shell: Shell, tmp_path: Path) -> Iterator[Shell]:
    with command_serving(shell.home) as url:
        yield Shell(tmp_path / "client", url=url)


def test_reading_commands_print_the_same_bytes_over_http(shell: Shell, remote: Shell) -> None:
    for command in READING:
        assert remote(*command).stdout == shell(*command).stdout, command


def test_refusals_say_the_same_sentence_over_http(shell: Shell, remote: Shell) -> None:
    for command in (
        ["resolve", "tiny/nothing"],
        ["resolve", "tiny/medicine@9"],
        ["resolve", LEAF, "--weight", "tiny/law=1", "--weight", "tiny/medicine=inf"],
        ["ls", "tiny/Upper"],
        ["ls", "absent"],
    ):
        said = [each(*command, check=False) for each in (shell, remote)]
        assert [done.returncode for done in said] == [1, 1]
        assert said[0].stderr == said[1].stderr


def test_publishing_and_composing_work_over_http(filled: Filled, remote: Shell, tmp_path: Path) -> None:
    adapter = tiny.adapter(filled.base, tmp_path / "adapter", seed=21, rank=3)
    published = remote("publish", adapter, "tiny/law", "--parent", "base")
    again = remote("publish", adapter, "tiny/law", "--parent", "base")
    assert published.stdout == again.stdout
    assert "already published" in again.stderr
    remote("compose", LEAF, "--mode", "merge", "--out", tmp_path / "merged", "--base", filled.base)
    trained = tiny.adapter(tmp_path / "merged", tmp_path / "leaf", seed=22, rank=2)
    refused = remote("publish", trained, f"{LEAF}/session", check=False)
    assert refused.returncode == 1
    assert "user" in refused.stderr
    remote("alias", "set", "tiny/law", "stable", "1")
    assert "tiny/law@stable" in remote("resolve", "tiny/law@stable", "--json").stdout


def test_a_server_beyond_loopback_is_refused(shell: Shell) -> None:
    done = shell("serve", "--host", "0.0.0.0", check=False)
    assert done.returncode == 1
    assert "access control" in done.stderr
