"""Whole numbers that a body writes as `2.0`: JSON has one kind of number, and a JSON schema takes it for an integer."""

from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from loratree_registry.api.body_limits import MAX_FAULTS


def with_whole_numbers(body: bytes, error: ValidationError) -> bytes | None:
    """Return the body with each refused number that is whole written as an integer, or None if there is none."""
    if error.error_count() > MAX_FAULTS:
        return None
    places = [fault["loc"] for fault in error.errors(include_url=False) if _is_whole(fault)]
    if not places:
        return None
    document = from_json(body)
    for place in places:
        _replace(document, place)
    return to_json(document)


def _is_whole(fault: Any) -> bool:
    value = fault["input"]
    return fault["type"] == "int_type" and isinstance(value, float) and value.is_integer()


def _replace(document: Any, place: tuple[int | str, ...]) -> None:
    *above, last = place
    for key in above:
        document = document[key]
    document[last] = int(document[last])
