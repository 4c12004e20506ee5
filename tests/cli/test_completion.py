"""What shells complete: asked by their protocol, and by the Tab key in a real bash."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import CHAIN, Shell

MED = "tiny/medicine"


@pytest.fixture
def tree(shell: Shell) -> Shell:
    shell("alias", "set", MED, "stable", "1")
    return shell


def asked(shell: Shell, line: str, instruction: str = "bash_complete") -> list[str]:
    """What the registry's program answers to a shell for `line`, with the cursor at its end."""
    words = line.split(" ")
    variables = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    environment = dict(shell.variables) | variables | {"_LORATREE_COMPLETE": instruction}
    return [line for line in Shell(shell.home, shell.url, environment)().stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("line", "answers"),
    [
        ("loratree pub", ["plain,publish"]),
        ("loratree resolve --fo", ["plain,--follow"]),
        ("loratree show ti", ["open,tiny"]),
        ("loratree show tiny/", ["open,tiny/medicine"]),
        ("loratree show tiny/med", ["open,tiny/medicine"]),
        ("loratree ls tiny/medicine/c", ["open,tiny/medicine/cardiology"]),
        ("loratree show tiny/medicine@", ["plain,@latest", "plain,@stable", "plain,@1"]),
        ("loratree resolve tiny/medicine@s", ["plain,@stable"]),
        ("loratree base show t", ["plain,tiny"]),
        ("loratree base add t", []),
        ("loratree alias set tiny/m", ["open,tiny/medicine"]),
        ("loratree show nothing/", []),
        ("loratree show tiny/medicine@x@", []),
    ],
)
def test_what_may_follow(tree: Shell, line: str, answers: list[str]) -> None:
    assert asked(tree, line) == answers


def test_zsh_and_fish_get_whole_refs(tree: Shell) -> None:
    assert asked(tree, "loratree show tiny/medicine@s", "zsh_complete")[1] == "tiny/medicine@stable"
    variables = {"COMP_WORDS": "loratree show tiny/medicine@s", "COMP_CWORD": "tiny/medicine@s"}
    fish = Shell(tree.home, variables=variables | {"_LORATREE_COMPLETE": "fish_complete"})
    assert "tiny/medicine@stable" in fish().stdout


def test_of_many_users_those_that_begin_alike_are_found(tree: Shell) -> None:
    from loratree_registry.embedded.registry import open_embedded
    from loratree_registry.settings import Settings

    registry = open_embedded(Settings.from_environment({"LORATREE_HOME": str(tree.home)}))
    for number in range(250):
        registry.create_node(f"{MED}/u{number:03}")
    registry.close()
    assert asked(tree, f"loratree show {MED}/u24") == [f"open,{MED}/u24{digit}" for digit in range(10)]
    assert len(asked(tree, f"loratree show {MED}/u")) == 200


def test_a_registry_that_cannot_be_asked_completes_nothing(tmp_path: Path) -> None:
    away = Shell(tmp_path / "home", url="http://127.0.0.1:9")
    started = time.monotonic()
    assert asked(away, "loratree show ti") == []
    assert time.monotonic() - started < 30


@pytest.fixture
def bash(tree: Shell, tmp_path: Path) -> Iterator[int]:
    """A bash at a terminal, which has read the script."""
    program = tmp_path / "loratree"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m loratree_cli "$@"\n')
    program.chmod(0o755)
    environment = {
        "LORATREE_HOME": str(tree.home),
        "LORATREE_CONFIG": os.devnull,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(sys.path),
        "HOME": str(tmp_path),
        "TERM": "dumb",
        "PS1": "$ ",
    }
    master, terminal = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    os.write(
        master,
        b'bind "set enable-bracketed-paste off"; eval "$(_LORATREE_COMPLETE=bash_source loratree)"; echo r"e"ady\n',
    )
    read_until(master, "ready")
    yield master
    shell.kill()
    shell.wait()
    os.close(master)


def read_until(master: int, text: str) -> str:
    """What the terminal shows until `text` came."""
    shown, end = "", time.monotonic() + 60
    while text not in shown.replace("\b", ""):
        assert time.monotonic() < end, shown
        if select.select([master], [], [], 1)[0]:
            shown += os.read(master, 65536).decode()
    return shown


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("loratree sho\t", "loratree show "),
        ("loratree show tiny/medi\t", "loratree show tiny/medicine"),
        ("loratree show tiny/medicine@st\t", "loratree show tiny/medicine@stable "),
        (f"loratree show {CHAIN[1][0]}/d\t", f"loratree show {CHAIN[1][0]}/diagnosis"),
    ],
)
def test_the_tab_key_completes_in_bash(bash: int, typed: str, shown: str) -> None:
    os.write(bash, typed.encode())
    read_until(bash, shown)
