"""Level weights in a query: weight=PATH:NUMBER, once per path. A path has no colon, so the first colon separates."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from loratree_registry.core.text import path_text, weight_text
from loratree_registry.errors import Invalid, listed


def written(weights: Mapping[str, float] | None) -> list[str]:
    """Write level weights for a query; write invalid numbers too, so that the registry refuses them by name."""
    return [f"{path_text(path)}:{weight_text(weight)}" for path, weight in (weights or {}).items()]


def read(texts: list[str] | None) -> dict[str, float]:
    """Read the level weights of a query. Raises Invalid, listing every text that is not PATH:NUMBER or repeats a path.

    The number is JSON. A number that is not JSON is passed on as text, and the registry refuses it.
    """
    pairs = [text.partition(":") for text in texts or ()]
    faults = [f"{path[:200]!r} is not PATH:NUMBER" for path, colon, _ in pairs if not colon]
    paths = Counter(path for path, colon, _ in pairs if colon)
    faults += [f"{path[:200]!r} is given {count} times" for path, count in paths.items() if count > 1]
    if faults:
        raise Invalid(f"the query's weight is once for each path, such as weight=tiny/medicine:0.5: {listed(faults)}")
    return {path: _parse_number(number) for path, _, number in pairs}


def _parse_number(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
