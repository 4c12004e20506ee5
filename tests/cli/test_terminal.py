"""What a person sees at a terminal: the same commands on a pseudo-terminal of their own."""

import os
import pty
import subprocess
import sys

from tests.cli.conftest import LEAF, Filled, Shell


def on_terminal(shell: Shell, *arguments: str) -> str:
    """Runs `loratree` with a terminal of 200 columns as its output, and returns what it wrote there."""
    master, terminal = pty.openpty()
    environment = {"LORATREE_HOME": str(shell.home), "COLUMNS": "200", "TERM": "xterm"}
    command = [sys.executable, "-m", "loratree_cli", *arguments]
    with subprocess.Popen(command, env=environment, stdout=terminal, stderr=terminal) as running:
        os.close(terminal)
        written = b""
        while chunk := _read(master):
            written += chunk
    os.close(master)
    assert running.returncode == 0, written.decode()
    return written.decode()


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # the other end was closed
        return b""


def test_tables_and_trees_are_drawn(shell: Shell) -> None:
    assert "LlamaForCausalLM" in on_terminal(shell, "ls")
    assert "alice" in on_terminal(shell, "tree", "tiny")
    assert "explicit" in on_terminal(shell, "resolve", LEAF)


def test_text_that_looks_like_markup_is_shown_as_it_is(shell: Shell, filled: Filled) -> None:
    shell("base", "add", "marked", filled.base, "--source", "see [/notes] and [red]this[/red]")
    assert "see [/notes] and [red]this[/red]" in on_terminal(shell, "ls")
