"""Free text that callers may add, and how messages show values, paths and addresses."""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Final

from loratree_registry.errors import Invalid

# What is told while something long runs: what is being done, how much of it is done, and of how much.
Progress = Callable[[str, int, int], object]

_REST: Final = re.compile(r"[?#]")
_TURNS: Final = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def check_text(what: str, text: str | None, *, limit: int) -> str | None:
    """Checks `text`'s length in characters, and for control characters and line breaks. Raises Invalid.

    Those that turn the direction of what follows are refused too: a line could be made to read as another.
    """
    if text is None:
        return None
    if len(text) > limit:
        raise Invalid(f"the {what} has {len(text)} characters, at most {limit} are allowed")
    wrong = sorted({repr(character) for character in text if _is_control(character)})
    if wrong:
        raise Invalid(f"the {what} holds {', '.join(wrong[:5])}: take out control characters and line breaks")
    return text


def check_reason(reason: str) -> None:
    """Checks why something is done to a version: some words, in one line. Raises Invalid."""
    if not reason.strip():
        raise Invalid("the reason is empty: say in a line why")
    check_text("reason", reason, limit=1000)


def same_quarantined(ref: str, reason: str) -> str:
    """The sentence that refuses content which was quarantined."""
    return (
        f"{ref} holds or held the same content and is quarantined ({reason}): "
        "train without what it was quarantined for, and publish that"
    )


def one_line(text: str) -> str:
    """The text as a terminal may be given it: a space for all that breaks the line or moves the cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def shortened(text: str, most: int = 100) -> str:
    """Return `text` cut to `most` characters, the last three of which are then dots."""
    return text if len(text) <= most else text[: most - 3] + "..."


def weight_text(weight: object) -> str:
    """A weight as JSON, a float by the fewest digits that give it back; what JSON has no form for, as a text."""
    try:
        return json.dumps(weight, default=ascii)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(f"a {type(weight).__name__}")


def path_text(path: object) -> str:
    """A path as it is; what is none, as a text that is no path either."""
    return path if isinstance(path, str) else ascii(path)


def without_secrets(address: str) -> str:
    """The address without its user, its password and its query, which may hold secrets.

    `postgresql://u:sekret@host/x?password=sekret` gives `postgresql://host/x`. Where an @ behind the query's beginning
    leaves open what is a password, only the scheme is left.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "", address
    place, *query = _REST.split(rest, maxsplit=1)
    if query and "@" in query[0]:
        return f"{scheme}{separator}…"
    return scheme + separator + (place if place.startswith("/") else place.rpartition("@")[2])


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in _TURNS
