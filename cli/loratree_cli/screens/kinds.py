"""The kind of an adapter in words: `LoRA`, `DoRA, rsLoRA`, `LoRA, biases, saved modules`."""

from typing import Final

from loratree_registry.core.kinds import KINDS, Kind, kinds_of
from loratree_registry.core.records import Node, Version

OPTIONS: Final = {kind.lower().replace(" ", "-"): kind for kind in KINDS}  # as --kind takes them
_USUAL: Final[list[Kind]] = ["LoRA"]


def kinds_of_version(version: Version) -> list[Kind]:
    """Return the kinds of a version."""
    return kinds_of(version.config, ranks=version.summary.ranks, rules=version.summary.rules)


def kind_text(version: Version) -> str:
    """Say what a version is made of; what is usual is `LoRA` alone."""
    return ", ".join(kinds_of_version(version))


def remarkable(node: Node, above: str | None) -> list[str]:
    """Return what is unusual of a node's head: its kinds if it is not LoRA alone, and what its pin is.

    A pin is unusual if it was assumed or forced, or if it is not at `above`, the nearest node above that has a head
    (None: there is none). Nothing is returned for what most heads are.
    """
    words = [", ".join(node.kinds)] if node.kinds not in ([], _USUAL) else []
    if node.pin is not None and node.pin.path != above:
        where = "the base" if node.pin.path is None else f"{node.pin.path.rpartition('/')[2]}@{node.pin.version}"
        words.append(f"on {where}")
    if node.pin is not None and node.pin.found in ("assumed", "forced"):
        words.append(node.pin.found)
    return words
