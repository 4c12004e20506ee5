"""Free text that callers may add, such as a version's note."""

import unicodedata
from typing import Final

from loratree_registry.errors import Invalid

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


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in _TURNS
