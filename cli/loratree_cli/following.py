"""The warnings of commands that compose or resolve."""

from collections.abc import Iterable

from loratree_cli.screens.terminal import say_words


def say_remarks(sentences: Iterable[str]) -> None:
    """Say each sentence about a composition as a warning."""
    for sentence in sentences:
        say_words(f"warning: {sentence}")
