"""Which modules a flattened adapter is on, and how its config says so."""

import re
from collections.abc import Collection
from typing import Final

from loratree_registry.core.manifest import BaseManifest

SIBLINGS: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def filled(names: Collection[str], layers: Collection[str]) -> set[str]:
    """`names`, the same modules in every other layer, and their siblings, of those that `layers` has."""
    wanted = {_anywhere(sibling) for name in names for sibling in _siblings(name)}
    return {name for name in layers if _anywhere(name) in wanted}


def target_modules(names: Collection[str], manifest: BaseManifest) -> list[str] | str:
    """The shortest form that PEFT matches with exactly `names`: last segments, else full names, else a pattern.

    PEFT matches a list's entries with the ends of names, so that `proj` means `a.proj` too; a pattern with all of one.
    """
    modules = {module for parameter in manifest.parameters for module in _enclosing(parameter.name)}
    for targets in ({name.rpartition(".")[2] for name in names}, set(names)):
        if {module for module in modules if not targets.isdisjoint(_endings(module))} == set(names):
            return sorted(targets)
    return "|".join(re.escape(name) for name in sorted(names))


def _anywhere(name: str) -> str:
    return _NUMBER.sub("*", name)


def _siblings(name: str) -> list[str]:
    parent, dot, last = name.rpartition(".")
    family = next((family for family in SIBLINGS if last in family), (last,))
    return [f"{parent}{dot}{sibling}" for sibling in family]


def _endings(name: str) -> list[str]:
    segments = name.split(".")
    return [".".join(segments[start:]) for start in range(len(segments))]


def _enclosing(parameter: str) -> list[str]:
    segments = parameter.split(".")[:-1]
    return [".".join(segments[:count]) for count in range(1, len(segments) + 1)]
