"""The modules that a flattened adapter is on, and the form in which its config names them."""

import re
from collections.abc import Collection
from typing import Final

from loratree_registry.core.manifest import BaseManifest

SIBLINGS: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def with_siblings(names: Collection[str], layers: Collection[str]) -> set[str]:
    """Return the modules among `layers` that equal one of `names`, or a sibling of one, in any numbered layer."""
    wanted = {_mask_numbers(sibling) for name in names for sibling in _list_siblings(name)}
    return {name for name in layers if _mask_numbers(name) in wanted}


def target_modules(names: Collection[str], manifest: BaseManifest) -> list[str] | str:
    """Return the shortest form that PEFT matches with exactly `names`: last segments, full names or a pattern.

    PEFT compares list entries with the ends of names, so `proj` also matches `a.proj`; a pattern matches whole names.
    """
    modules = {module for parameter in manifest.parameters for module in list_enclosing(parameter.name)}
    for targets in ({name.rpartition(".")[2] for name in names}, set(names)):
        if {module for module in modules if not targets.isdisjoint(_list_endings(module))} == set(names):
            return sorted(targets)
    return "|".join(re.escape(name) for name in sorted(names))


def _mask_numbers(name: str) -> str:
    return _NUMBER.sub("*", name)


def _list_siblings(name: str) -> list[str]:
    parent, dot, last = name.rpartition(".")
    family = next((family for family in SIBLINGS if last in family), (last,))
    return [f"{parent}{dot}{sibling}" for sibling in family]


def _list_endings(name: str) -> list[str]:
    segments = name.split(".")
    return [".".join(segments[start:]) for start in range(len(segments))]


def list_enclosing(parameter: str) -> list[str]:
    """Return the names of the modules around a parameter, the outermost first."""
    segments = parameter.split(".")[:-1]
    return [".".join(segments[:count]) for count in range(1, len(segments) + 1)]
