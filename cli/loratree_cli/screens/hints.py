"""What to do next where there is nothing to show; on stderr, so that stdout stays empty for programs."""

from pathlib import Path

from loratree_cli.screens.terminal import say_words
from loratree_registry.core.records import Node
from loratree_registry.core.text import without_secrets
from loratree_registry.errors import listed
from loratree_registry.settings import Settings


def say_no_base() -> None:
    """Say how to begin with an empty registry, and where it is."""
    where = _where(Settings.from_environment())
    say_words(
        f"the registry {where} is empty: `loratree base add NAME DIR` records a base model, and `loratree demo` grows "
        "a small tree of its own"
    )


def _where(settings: Settings) -> str:
    if settings.url is not None:
        return f"at {without_secrets(settings.url)}"
    if isinstance(settings.database, Path):
        return f"in {settings.home} (LORATREE_HOME)"
    return f"in the database {without_secrets(settings.database)} (LORATREE_DATABASE)"


def say_no_versions(bases: list[str]) -> None:
    """Say how to publish the first version over each of these bases."""
    has, first = ("has", bases[0]) if len(bases) == 1 else ("have", "BASE")
    say_words(
        f"{listed(bases, limit=3)} {has} no versions yet: `loratree publish DIR {first}/NAME` publishes the first"
    )


def say_no_version(path: str) -> None:
    """Say that the node at `path` has no version, and how to publish one."""
    say_words(f"{path} has no version: `loratree publish DIR {path}` publishes one")


def say_no_alias(node: Node) -> None:
    """Say that a node has no alias, and how to set one if it has a version."""
    how = f"`loratree alias set {node.path} stable NUMBER` sets one"
    say_words(
        f"{node.path} has no aliases: {how if node.head is not None else 'an alias names a version, and it has none'}"
    )


def say_nothing_like(node: Node, *, below: bool) -> None:
    """Say that no node below `node` is as --kind and --found ask; `below` says whether they all were read."""
    deeper = "" if below else "; --below reads those at any depth"
    say_words(f"no node {'' if below else 'directly '}below {node.path} has such a head{deeper}")


def say_no_dependents(ref: str) -> None:
    """Say that nothing was trained on a version, or on a base."""
    say_words(f"nothing was trained on {ref}: `loratree tree` shows all that there is")


def say_nothing_below(node: Node) -> None:
    """Say that there is no node below `node`, and what to do instead."""
    if node.level == "base":
        say_no_versions([node.path])
        return
    publish = f"`loratree publish DIR {node.path}/NAME` publishes there, and "
    say_words(
        f"nothing is below {node.path}: {publish if node.level != 'user' else ''}`loratree show {node.path}` "
        "shows its versions"
    )
