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


def remarkable(node: Node) -> list[str]:
    """Return what is unusual of a node's head: its kinds if it is not LoRA alone, and a pin that is assumed or forced.

    Nothing is returned for what most heads are.
    """
    kinds = [", ".join(node.kinds)] if node.kinds not in ([], _USUAL) else []
    return [*kinds, *([node.found] if node.found in ("assumed", "forced") else [])]
