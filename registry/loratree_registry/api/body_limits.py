"""Limits on what a body's JSON may cost: how many values it holds, and how many of its faults are listed."""

from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from loratree_registry.errors import Invalid

MAX_FAULTS: Final = 5_000  # the framework takes 2 KB and 7 µs for each fault that it lists
_PREFIX: Final = 100  # members of each list and object that are looked at if there are more faults


def check_count(body: bytes, most: int, *, what: str) -> None:
    """Raise Invalid if the JSON may hold more than `most` values: its commas and brackets are counted unparsed."""
    count = 1 + sum(map(body.count, (b",", b"[", b"{")))
    if count > most:
        raise Invalid(f"{what} holds up to {count} values, at most {most} are read: send fewer")


def list_faults(kind: TypeAdapter[Any], body: bytes, error: ValidationError) -> list[Any]:
    """List the faults of a body that is not of this kind; if there are very many, those near its beginning."""
    if error.error_count() <= MAX_FAULTS:
        return list(error.errors(include_url=False))
    try:
        kind.validate_python(_shorten(from_json(body)), strict=False)
    except ValidationError as beginning:
        if beginning.error_count() <= MAX_FAULTS:
            return list(beginning.errors(include_url=False))
    message = f"it has {error.error_count()} faults, none of them near its beginning"
    return [{"type": "many", "loc": (), "msg": message, "ctx": {}}]


def _shorten(value: Any) -> Any:
    """Return a value with only the first members of each list and object."""
    if isinstance(value, dict):
        return {key: _shorten(value[key]) for key in list(value)[:_PREFIX]}
    if isinstance(value, list):
        return [_shorten(item) for item in value[:_PREFIX]]
    return value
