"""The warnings of commands with --follow: no level has the alias, or versions stand on others than in training."""

from loratree_cli.screens.terminal import say_words
from loratree_cli.screens.verdicts import say_others
from loratree_registry.core.paths import HEAD
from loratree_registry.core.records import Link
from loratree_registry.core.registry import Registry
from loratree_registry.core.text import nearest
from loratree_registry.errors import listed


def warn_of_follow(opened: Registry, ref: str, follow: str | None) -> None:
    """Say what `warn_if_unset` says, and which versions of the chain of `ref` were trained on others."""
    if follow is None:
        return
    chain = opened.resolve(ref, follow=follow).chain
    warn_if_unset(opened, ref, follow, chain)
    if others := say_others(chain):
        say_words(f"warning: {others}")


def warn_if_unset(opened: Registry, ref: str, follow: str | None, chain: list[Link]) -> None:
    """Say that no level of the chain of `ref` has the alias `follow`, and which aliases there are."""
    if follow in (None, HEAD) or not chain:
        return
    if any(link.follow == "alias" for link in chain):
        return
    known = sorted({alias.name for link in chain for alias in opened.aliases(link.path)})
    if follow in known:  # the leaf's own alias, which --follow leaves alone
        return
    have = f"they have {listed(known)}" if known else "they have none"
    say_words(
        f"warning: no level of {ref} has the alias {follow!r}{nearest(follow, known)}, {have}: each is at its pin"
    )
