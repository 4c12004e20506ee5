"""Checks of free text from callers, and the form of values, paths and addresses in messages."""

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Final

from loratree_registry.errors import Invalid

_REST: Final = re.compile(r"[?#]")
_TURNS: Final = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def check_text(what: str, text: str | None, *, limit: int) -> str | None:
    """Check that `text` is not too long and holds no control characters or line breaks, and return it. Raises Invalid.

    Characters that change the writing direction are refused too, because they can make a line read as another line.
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
    """Check that the reason for changing a version is one line that is not empty. Raises Invalid."""
    if not reason.strip():
        raise Invalid("the reason is empty: say in a line why")
    check_text("reason", reason, limit=1000)


def same_quarantined(ref: str, reason: str) -> str:
    """Return the error message for content that equals the content of a quarantined version."""
    return (
        f"{ref} holds or held the same content and is quarantined ({reason}): "
        "train without the quarantined data, and publish the new adapter"
    )


def bytes_quarantined(path: str, ref: str, reason: str) -> str:
    """Return the error message for an adapter to be published at `path` whose bytes a quarantined version holds."""
    return (
        f"{path} cannot take this adapter: {ref} holds the same bytes and is quarantined ({reason}): train without the "
        f"quarantined data, or once the bytes are safe end it by `loratree quarantine {ref} --undo`"
    )


def counted(count: int, noun: str) -> str:
    """Format a count for people: 1 version, 2 versions."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def one_line(text: str) -> str:
    """Return `text` with a space for each character that breaks the line or moves a terminal's cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def shortened(text: str, most: int = 100) -> str:
    """Return `text` cut to `most` characters; a cut text ends with three dots."""
    return text if len(text) <= most else text[: most - 3] + "..."


def weight_text(weight: object) -> str:
    """Return a weight as JSON, a float with the fewest digits; a value that JSON cannot express becomes a string."""
    try:
        return json.dumps(weight, default=ascii)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(f"a {type(weight).__name__}")


def path_text(path: object) -> str:
    """Return a path unchanged, and any other value as its ASCII representation."""
    return path if isinstance(path, str) else ascii(path)


def without_secrets(address: str) -> str:
    """Return an address without its user, password and query, which may hold secrets.

    `postgresql://u:sekret@host/x?password=sekret` gives `postgresql://host/x`. If an @ follows the first ? or #, the
    text before the @ may be a password, so only the scheme is returned.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "", address
    place, *query = _REST.split(rest, maxsplit=1)
    if query and "@" in query[0]:
        return f"{scheme}{separator}…"
    is_file = place.startswith("/") and (scheme in ("sqlite", "file") or (not separator and place[1:2] != "/"))
    return scheme + separator + (place if is_file else place.rpartition("@")[2])


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in _TURNS


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'stable'?)` for the known name that is most like `name`, or nothing if none is."""
    similar = nearest_name(name, known)
    return "" if similar is None else f" (did you mean {similar!r}?)"


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like `name`, or None if none is."""
    import difflib

    return next(iter(difflib.get_close_matches(name[:80], sorted(known), n=1)), None)
