"""Level weights in a query: weight=PATH:NUMBER, once for each path. No path has a colon, so the first one divides."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from loratree_registry.core.text import path_text, weight_text
from loratree_registry.errors import Invalid, listed


def written(weights: Mapping[str, float] | None) -> list[str]:
    """Level weights as a query holds them; what is no number too, so that the registry refuses it by name."""
    return [f"{path_text(path)}:{weight_text(weight)}" for path, weight in (weights or {}).items()]


def read(texts: list[str] | None) -> dict[str, float]:
    """The level weights of a query; the registry checks them. Raises Invalid, listing what is not PATH:NUMBER or twice.

    The number is JSON's; what is no JSON is passed on as the text that it is, and refused by the registry.
    """
    pairs = [text.partition(":") for text in texts or ()]
    faults = [f"{path[:200]!r} is not PATH:NUMBER" for path, colon, _ in pairs if not colon]
    paths = Counter(path for path, colon, _ in pairs if colon)
    faults += [f"{path[:200]!r} is given {count} times" for path, count in paths.items() if count > 1]
    if faults:
        raise Invalid(f"the query's weight is once for each path, such as weight=tiny/medicine:0.5: {listed(faults)}")
    return {path: _value(number) for path, _, number in pairs}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
