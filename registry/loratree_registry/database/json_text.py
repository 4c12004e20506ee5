"""JSON that is written before a transaction begins, so that the transaction only stores it."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class JsonText:
    """A value of a JSON column, already as text: writing a large one takes longer than storing it."""

    text: str


def to_json(value: Any) -> JsonText:
    """Write a value as JSON, as the database's own serialiser does."""
    return JsonText(json.dumps(value))


def serialize(value: Any) -> str:
    """Return the text of a JSON column: the engine calls this for every value."""
    return value.text if isinstance(value, JsonText) else json.dumps(value)
