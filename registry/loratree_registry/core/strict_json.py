"""The one reader of JSON that comes from anyone: RFC 8259 to the letter, and nothing ambiguous; standard library only.

Python's `json` takes duplicate keys (the last wins), NaN and Infinity, numbers that become infinite, and lone
surrogates that no file or digest can hold. Two readers of such a document may read two things.
"""

import json
import math
import re
from collections import Counter
from typing import Any, Final

from loratree_registry.core.text import shortened
from loratree_registry.errors import listed

MAX_DIGITS: Final = 19  # of a whole number: sizes and offsets fit 63 bits, and int() takes quadratic time

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def parse_json(text: bytes) -> Any:
    """Reads a UTF-8 document. Raises ValueError, a clause that says what is wrong, and nothing else."""
    try:
        decoded = text.decode("utf-8")
        document = json.loads(
            decoded,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_no_constant,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    for escape in _ESCAPE.finditer(decoded):
        if escape[1]:
            raise ValueError(f"\\{escape[1]} is half a character")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = [shortened(ascii(key)) for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"{listed(twice, limit=5)} stands twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"the number {shortened(ascii(digits))} has more than {MAX_DIGITS} digits")
    return int(digits)


def _number(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {shortened(ascii(digits))} is larger than any float")
    return number


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
