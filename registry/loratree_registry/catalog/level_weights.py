"""Level weights: the factor of each level in a chain, checked against the rules of its adapter."""

import math
from collections.abc import Mapping
from typing import Final

from loratree_registry.core.text import path_text, shortened, weight_text
from loratree_registry.database.rows import VersionRow
from loratree_registry.errors import Invalid, listed

_WHOLE: Final = ("override", "ordered")  # these rules apply an adapter whole or not at all


def level_weights(ref: str, chain: list[VersionRow], weights: Mapping[str, float] | None) -> list[float]:
    """Return the weight of each version of `chain`, root to leaf: 1 if `weights` does not name its path; -0.0 is 0.

    Raises Invalid with all offenders: a path that is not in the chain, a weight that is not a finite number, a weight
    other than 0 and 1 for an adapter with override or ordered parts.
    """
    given, versions = dict(weights or {}), {row.path: row for row in chain}
    faults = [fault for path, weight in given.items() if (fault := _find_fault(path, weight, versions.get(path)))]
    if faults:
        levels = f"its levels are {listed(list(versions))}" if versions else "it is the base alone, without a level"
        raise Invalid(f"{ref} does not take these level weights ({listed(faults)}): {levels}")
    return [float(given.get(path, 1)) + 0.0 for path in versions]


def _find_fault(path: object, weight: object, version: VersionRow | None) -> str | None:
    got = shortened(weight_text(weight))
    if version is None:
        return f"{_make_printable(path_text(path))} is not in its chain"
    if not _is_finite(weight):
        return f"{version.path} has {got}, expected a finite number"
    whole = [rule for rule in _WHOLE if rule in version.adapter().rules]
    if whole and weight not in (0, 1):
        return f"{version.ref} has {' and '.join(whole)} parts, so it takes 1, or 0 to drop the level, got {got}"
    return None


def _is_finite(weight: object) -> bool:
    """Return whether `weight` is a finite float, or an int that a float holds exactly. A bool is not a number here."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        return False
    try:
        return math.isfinite(weight) and float(weight) == weight
    except OverflowError:
        return False


def _make_printable(path: str) -> str:
    return shortened(path if path and path.isprintable() else ascii(path))
