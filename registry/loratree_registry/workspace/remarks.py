"""What a composition is to be used with care for: sentences for people, from a resolved chain."""

import sys
import warnings
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Final

from loratree_registry.core.paths import HEAD, ancestors_of, parse_ref
from loratree_registry.core.records import Link, Resolution
from loratree_registry.core.registry import Registry
from loratree_registry.core.text import nearest
from loratree_registry.errors import CompositionWarning, listed

_SHOWN: Final = 3  # versions that are named
_OWN: Final = ("loratree", "loratree_cli", "loratree_composer", "loratree_registry", "contextlib")


def find_remarks(registry: Registry, resolution: Resolution, *, follow: str | None) -> list[str]:
    """Return a sentence for each thing that a chain does not say by itself.

    The path has no version of its own; a version was withdrawn; no level has the alias `follow`; versions stand on
    others than they were trained on.
    """
    found = [
        _say_grouping(resolution),
        _say_withdrawn(resolution.chain),
        say_unset(registry, resolution, follow),
        say_others(resolution.chain),
    ]
    return [sentence for sentence in found if sentence]


def warn(sentences: Iterable[str]) -> None:
    """Give each sentence to Python's warnings, as a CompositionWarning at the line that called loratree."""
    for sentence in sentences:
        warnings.warn(sentence, CompositionWarning, stacklevel=_count_own_frames() + 1)


def _count_own_frames() -> int:
    """Return how many callers, from the caller of this function on, are loratree's or only pass a call on."""
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _OWN:
        frame, count = frame.f_back, count + 1
    return count


def find_others(chain: Sequence[Link]) -> dict[str, tuple[str, str]]:
    """Return what stands above a version, and what it was trained on, for each version where these differ, by its path.

    They differ only in a chain that follows an alias.
    """
    others = {}
    for above, link in zip([None, *chain], chain, strict=False):
        stands = ("the base", None) if above is None else (above.path, above.version)
        trained = ("the base", None) if link.pin.path is None else (link.pin.path, link.pin.version)
        if stands != trained:
            others[link.path] = (_ref(*stands), _ref(*trained))
    return others


def say_others(chain: Sequence[Link]) -> str:
    """Say which versions of a chain stand on others than they were trained on; nothing if none does."""
    others = find_others(chain)
    names = [
        f"{link.path}@{link.version} on {others[link.path][0]}, trained on {others[link.path][1]}"
        for link in chain
        if link.path in others
    ]
    one, more = "1 version stands on another than it was", f"{len(names)} versions stand on others than they were"
    return f"{one if len(names) == 1 else more} trained on: {listed(names, limit=_SHOWN)}" if names else ""


def say_skipped(registry: Registry, chain: Sequence[Link]) -> str:
    """Say which nodes above a chain's leaf have a head and no version in the chain; nothing if there are none.

    The chain was trained on what is above them. It asks for each node that the chain has no version of.
    """
    below = {path: link for link in reversed(chain) for path in ancestors_of(link.path)[1:]}
    links, skipped = {link.path for link in chain}, []
    for path, link in sorted(below.items()):
        if path not in links and (head := registry.node(path).head) is not None:
            trained = "the base" if link.pin.path is None else _ref(link.pin.path, link.pin.version)
            skipped.append(f"{path}@{head} is no part of it, as {link.path}@{link.version} was trained on {trained}")
    return listed(skipped, limit=_SHOWN)


def say_unset(registry: Registry, resolution: Resolution, follow: str | None) -> str:
    """Say that no level of the chain has the alias `follow`, and which aliases there are; nothing if one has it."""
    chain = resolution.chain
    if follow in (None, HEAD) or not chain or any(link.follow == "alias" for link in chain):
        return ""
    known = sorted({alias.name for link in chain for alias in registry.aliases(link.path)})
    if follow in known:  # the leaf's own alias, which following leaves alone
        return ""
    have = f"they have {listed(known)}" if known else "they have none"
    ref = resolution.ref
    return f"no level of {ref} has the alias {follow!r}{nearest(follow, known)}, {have}: each is at its pin"


def _say_grouping(resolution: Resolution) -> str:
    path, chain = parse_ref(resolution.ref).path, resolution.chain
    leaf = chain[-1].path if chain else resolution.base.name
    if path == leaf:
        return ""
    what = f"{leaf}@{chain[-1].version}, above it" if chain else f"the base {leaf} alone"
    return f"{path} has no version of its own: this is {what}"


def _say_withdrawn(chain: Sequence[Link]) -> str:
    names = [f"{link.path}@{link.version} ({link.withdrawn.reason})" for link in chain if link.withdrawn]
    return f"withdrawn, and in the chain: {listed(names, limit=_SHOWN)}" if names else ""


def _ref(path: str, number: int | None) -> str:
    return path if number is None else f"{path}@{number}"
