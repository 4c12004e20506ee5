"""How many examples a property draws whose examples are slow: a few in the suite, many where it soaks."""

import os
from typing import Final

_TIMES: Final = 20 if os.environ.get("LORATREE_TEST_HYPOTHESIS") == "soak" else 1


def examples(count: int) -> int:
    """Return `count`, or many times as many with LORATREE_TEST_HYPOTHESIS=soak."""
    return count * _TIMES
