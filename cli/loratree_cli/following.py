"""The warning of commands with --follow if no level has the alias."""

from loratree_cli.screens.terminal import say_words
from loratree_registry.core.paths import HEAD
from loratree_registry.core.registry import Registry
from loratree_registry.core.text import nearest
from loratree_registry.errors import listed


def warn_if_unset(opened: Registry, ref: str, follow: str | None) -> None:
    """Say that no level of the chain of `ref` has the alias `follow`, and which aliases there are."""
    if follow in (None, HEAD):
        return
    chain = opened.resolve(ref, follow=follow).chain
    if any(link.follow == "alias" for link in chain):
        return
    known = sorted({alias.name for link in chain for alias in opened.aliases(link.path)})
    if follow in known:  # the leaf's own alias, which --follow leaves alone
        return
    have = f"they have {listed(known)}" if known else "they have none"
    say_words(
        f"warning: no level of {ref} has the alias {follow!r}{nearest(follow, known)}, {have}: each is at its pin"
    )
