"""Strict parser for JSON from untrusted sources: RFC 8259, and nothing ambiguous; standard library only.

Python's `json` accepts duplicate keys (the last one wins), NaN and Infinity, numbers that overflow to infinity, and
lone surrogates, which no file or digest can hold. Two parsers may read such a document differently.
"""

import json
import math
import re
from collections import Counter
from typing import Any, Final

from loratree_registry.core.text import shortened
from loratree_registry.errors import listed

MAX_DIGITS: Final = 19  # of an integer: sizes and offsets fit in 63 bits, and int() takes quadratic time

_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)


def parse_json(text: bytes) -> Any:
    """Parse a UTF-8 document. Raises only ValueError, with a clause that says what is wrong."""
    try:
        decoded = text.decode("utf-8")
        document = json.loads(
            decoded,
            object_pairs_hook=_build_object,
            parse_int=_parse_integer,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    for escape in _ESCAPE.finditer(decoded):
        if escape[1]:
            raise ValueError(f"\\{escape[1]} is half a character")
    return document


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        repeated = [shortened(ascii(key)) for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        raise ValueError(f"{listed(repeated, limit=5)} stands twice in one object")
    return members


def _parse_integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"the number {shortened(ascii(digits))} has more than {MAX_DIGITS} digits")
    return int(digits)


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {shortened(ascii(digits))} is larger than any float")
    return number


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
