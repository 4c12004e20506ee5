"""What a person sees at a terminal: the same commands on a pseudo-terminal of their own."""

from tests.cli.conftest import LEAF, Filled, Shell
from tests.terminals import on_terminal


def test_tables_and_trees_are_drawn(shell: Shell) -> None:
    assert "LlamaForCausalLM" in on_terminal(shell.home, "ls")
    assert "alice" in on_terminal(shell.home, "tree", "tiny")
    assert "explicit" in on_terminal(shell.home, "resolve", LEAF)


def test_text_that_looks_like_markup_is_shown_as_it_is(shell: Shell, filled: Filled) -> None:
    shell("base", "add", "marked", filled.base, "--source", "see [/notes] and [red]this[/red]")
    assert "see [/notes] and [red]this[/red]" in on_terminal(shell.home, "ls")
    assert "see [/notes] and [red]this[/red]" in on_terminal(shell.home, "base", "show", "marked")
