"""The last line of `resolve` and `lineage`: what a chain amounts to, and what is to be known of it."""

from collections.abc import Callable, Sequence
from typing import Final

from loratree_cli.screens.states import STYLES
from loratree_registry.core.records import Lineage, Resolution, Version
from loratree_registry.errors import listed
from loratree_registry.workspace.remarks import find_others, say_others

_SHOWN: Final = 3  # edges or versions that are named


def newer_head(number: int, head: int | None) -> int | None:
    """Return the head if the version `number` is older than it."""
    return head if head is not None and head > number else None


def resolution_verdict(resolution: Resolution, skipped: str = "") -> tuple[str, str]:
    """Return the verdict on a resolved chain, and its style; `skipped` says what above it is no part of it."""
    if not resolution.chain:
        return f"no level: this is {resolution.base.name} itself", ""
    heads = {link.path: link.head for link in resolution.chain}
    others, leaf = find_others(resolution.chain), resolution.chain[-1]
    stale = [(link.pin.path, link.pin.version) for link in resolution.chain if link.stale and link.path not in others]
    withdrawn = [f"{link.path}@{link.version}" for link in resolution.chain if link.withdrawn]
    size = sum(file.size for link in resolution.chain for file in link.files)
    total = "; ".join(filter(None, [_total([link.ranks for link in resolution.chain], size), skipped]))
    known = [_stale_edge(path, number, heads) for path, number in stale if path is not None]
    older = [say_others(resolution.chain), _say_older(leaf.path, leaf.version, leaf.head)]
    return _verdict(total, known, withdrawn, [], older)


def lineage_verdict(
    lineage: Lineage, versions: Sequence[Version], head_of: Callable[[str], int | None]
) -> tuple[str, str]:
    """Return the verdict on a lineage and its style; `head_of` gives the present head of a path."""
    if not versions:
        return f"no level: this is {lineage.base.name} itself", ""
    total = _total([version.summary.ranks for version in versions], sum(version.size for version in versions))
    stale = [edge.parent.rpartition("@") for edge in lineage.edges if edge.stale and edge.parent is not None]
    known = [_stale_edge(path, number, {path: head_of(path)}) for path, _, number in stale]
    withdrawn = [edge.child for edge in lineage.edges if edge.withdrawn]
    quarantined = [edge.child for edge in lineage.edges if edge.quarantined]
    leaf = versions[-1]
    older = _say_older(leaf.path, leaf.number, head_of(leaf.path))
    return _verdict(total, known, withdrawn, quarantined, [older])


def now_text(head: int | None) -> str:
    """Say which version is the head now: `now @3`."""
    return "now without a head" if head is None else f"now @{head}"


def _ref(path: str, number: int | None) -> str:
    return path if number is None else f"{path}@{number}"


def _say_older(path: str, number: int, head: int | None) -> str:
    return f"{path}@{number} is older than its head, @{head}" if newer_head(number, head) else ""


def _stale_edge(path: str, number: int | str | None, heads: dict[str, int | None]) -> str:
    return f"{path}@{number}" + (f", {now_text(heads[path])}" if path in heads else "")


def _total(ranks: Sequence[Sequence[int]], size: int) -> str:
    from loratree_cli.output import bytes_text, counted

    most = sum(max(level, default=0) for level in ranks)
    up_to = "up to " if any(len(level) > 1 for level in ranks) else ""
    return f"{counted(len(ranks), 'level')}, {up_to}{counted(most, 'rank')}, {bytes_text(size)}"


def _verdict(
    total: str, stale: Sequence[str], withdrawn: Sequence[str], quarantined: Sequence[str], older: Sequence[str]
) -> tuple[str, str]:
    found = {
        "quarantined": _count("version", quarantined, "quarantined, so no chain through it resolves"),
        "withdrawn": _count("version", withdrawn, "withdrawn"),
        "stale": _count("edge", stale, "stale"),
        "older": "; ".join(filter(None, older)),
    }
    style = next((STYLES[word] for word, text in found.items() if text), "green")
    return "; ".join([total, *filter(None, found.values())] if any(found.values()) else [total, "all current"]), style


def _count(noun: str, names: Sequence[str], what: str) -> str:
    if not names:
        return ""
    counted = f"1 {noun} is" if len(names) == 1 else f"{len(names)} {noun}s are"
    return f"{counted} {what}: {listed(names, limit=_SHOWN)}"
