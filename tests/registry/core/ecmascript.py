"""RFC 8785 a second time, written from its text, to hold the library that the digests rest on."""

import json
import math
from decimal import Decimal
from typing import Any

_MAX_SAFE_INTEGER = 2**53 - 1


def written(value: Any) -> bytes:
    return _write(value).encode("utf-8")


def _write(value: Any) -> str:
    if value is None or isinstance(value, (bool, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_write(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{_write(key)}:{_write(value[key])}" for key in _ordered(value)) + "}"
    raise ValueError(f"canonical JSON has no form for {type(value).__name__}")


def _ordered(mapping: dict[Any, Any]) -> list[str]:
    if not all(isinstance(key, str) for key in mapping):
        raise ValueError("canonical JSON takes strings alone as keys")
    return sorted(mapping, key=lambda key: key.encode("utf-16-be"))


def _integer(value: int) -> str:
    if abs(value) > _MAX_SAFE_INTEGER:
        raise ValueError(f"canonical JSON holds integers to 2**53 - 1 exactly, got {value}")
    return str(value)


def _number(value: float) -> str:
    """A float as ECMAScript's Number::toString prints it (RFC 8785, section 3.2.2.3)."""
    if not math.isfinite(value):
        raise ValueError(f"canonical JSON has no form for {value}")
    if value == 0:
        return "0"
    sign, digit_tuple, exponent = Decimal(repr(value)).normalize().as_tuple()
    digits = "".join(map(str, digit_tuple))
    point = len(digits) + int(exponent)  # where the decimal point stands, counted from the first digit
    return ("-" if sign else "") + _place(digits, point)


def _place(digits: str, point: int) -> str:
    if len(digits) <= point <= 21:
        return digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return f"{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    mantissa = digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "")
    return f"{mantissa}e{'+' if point > 0 else '-'}{abs(point - 1)}"
