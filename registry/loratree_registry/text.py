"""Free text that callers may add, such as a version's note."""

import unicodedata

from loratree_registry.errors import Invalid


def check_text(what: str, text: str | None, *, limit: int) -> str | None:
    """Checks `text`'s length in characters, and for control characters, line breaks and tabs aside. Raises Invalid."""
    if text is None:
        return None
    if len(text) > limit:
        raise Invalid(f"the {what} has {len(text)} characters, at most {limit} are allowed")
    wrong = sorted({repr(character) for character in text if _is_control(character)})
    if wrong:
        raise Invalid(f"the {what} holds {', '.join(wrong[:5])}: control characters are not allowed, take them out")
    return text


def _is_control(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in ("Cc", "Cs")
