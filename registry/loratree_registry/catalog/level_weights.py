"""Level weights: how much each level of a chain adds, checked against what its adapter can take."""

import math
from collections.abc import Mapping
from typing import Final

from loratree_registry.core.text import path_text, shortened, weight_text
from loratree_registry.database.rows import VersionRow
from loratree_registry.errors import Invalid, listed

_WHOLE: Final = ("override", "ordered")  # the rules of what is applied whole or not at all


def level_weights(ref: str, chain: list[VersionRow], weights: Mapping[str, float] | None) -> list[float]:
    """The weight of each version of `chain`, root to leaf: 1 where `weights` does not name its path; -0.0 is 0.

    Raises Invalid, with all offenders: a path that is not in the chain, a weight that is no finite number, a weight
    other than 0 and 1 where the adapter has override or ordered parts.
    """
    given, versions = dict(weights or {}), {row.path: row for row in chain}
    faults = [fault for path, weight in given.items() if (fault := _fault(path, weight, versions.get(path)))]
    if faults:
        levels = f"its levels are {listed(list(versions))}" if versions else "it is the base alone, without a level"
        raise Invalid(f"{ref} does not take these level weights ({listed(faults)}): {levels}")
    return [float(given.get(path, 1)) + 0.0 for path in versions]


def _fault(path: object, weight: object, version: VersionRow | None) -> str | None:
    got = shortened(weight_text(weight))
    if version is None:
        return f"{_printable(path_text(path))} is not in its chain"
    if not _is_finite(weight):
        return f"{version.path} has {got}, expected a finite number"
    whole = [rule for rule in _WHOLE if rule in version.adapter().rules]
    if whole and weight not in (0, 1):
        return f"{version.ref} has {' and '.join(whole)} parts, so it takes 1, or 0 to drop the level, got {got}"
    return None


def _is_finite(weight: object) -> bool:
    """Tells whether it is a number that a float holds, exactly where it is whole; True and False are none."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        return False
    try:
        return math.isfinite(weight) and float(weight) == weight
    except OverflowError:
        return False


def _printable(path: str) -> str:
    return shortened(path if path and path.isprintable() else ascii(path))
