"""The terminal that people read: its width, and text that is broken between words only."""

import sys
from typing import TYPE_CHECKING, Final

import click

from loratree_cli.speech import SPEECH
from loratree_registry.core.text import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

FAINT: Final = "dim"  # the style of what matters least


def terminal() -> "Console | None":
    """Return the terminal that stdout is, or None for a pipe or a file."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    return Console(highlight=False)


def say_words(sentence: str) -> None:
    """Print a sentence to stderr, broken between words only if that is a terminal; nothing with --quiet."""
    if SPEECH.quiet:
        return
    if not sys.stderr.isatty():
        click.echo(one_line(sentence), err=True)
        return
    from rich.console import Console

    write_words(Console(stderr=True, highlight=False), sentence)


def write_line(console: "Console", line: "Text") -> None:
    """Print a line as it is: rich neither wraps nor cuts it."""
    line.rstrip()
    console.print(line, soft_wrap=True)


def write_words(console: "Console", text: str, style: str = "") -> None:
    """Print text that is broken between words only; a word that is wider than the terminal is a line of its own."""
    for line in wrap(one_line(text), console.width):
        line.stylize(style)
        write_line(console, line)


def wrap(text: str, width: int) -> "list[Text]":
    """Break text between words into lines of at most `width` cells; a wider word is a line of its own."""
    from rich.cells import cell_len  # rich.text.Text.wrap breaks words that are too wide
    from rich.text import Text

    lines = [""]
    for word in text.split(" "):
        if lines[-1] and cell_len(f"{lines[-1]} {word}") > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return [Text(line.rstrip()) for line in lines]


def shorten(text: str, width: int) -> str:
    """Cut text between two words so that it takes at most `width` cells with the "…" at its end."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    kept = ""
    for word in text.split():
        longer = f"{kept} {word}".strip()
        if cell_len(longer) > width - 2:
            break
        kept = longer
    return f"{kept} …".strip()
