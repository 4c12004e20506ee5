"""Errors that loratree raises, each with its HTTP status.

A message is one sentence that a person can act on: what is wrong, what was expected, what was got, what to do.
The API turns an error into an RFC 9457 problem document; the command line prints the sentence and exits with 1.
"""

from collections.abc import Sequence
from typing import Final

MAX_SENTENCE: Final = 540  # characters; the command line adds `loratree: ` and a hint, and prints at most 600
_WORD: Final = 120


class LoratreeError(Exception):
    """The base of every error that loratree raises on purpose; `status` is its HTTP status.

    `details` are the single problems, one clause each, if there are more than the sentence names. A sentence that is
    longer than MAX_SENTENCE, as one that repeats a caller's endless name, is cut within.
    """

    status = 500
    title = "Internal error"

    def __init__(self, sentence: str, *, details: Sequence[str] = ()) -> None:
        super().__init__(fitted(sentence))
        self.details = tuple(details)

    @property
    def slug(self) -> str:
        """The error's name in a problem document's `type`, such as `not-found`."""
        return self.title.lower().replace(" ", "-")


class CompositionWarning(UserWarning):
    """A composition that was asked for is to be used with care; the sentence says why."""


class Invalid(LoratreeError):
    """The input is wrong in itself, or does not fit the base, the chain or the bytes that it names."""

    status = 422
    title = "Invalid input"


class NotFound(LoratreeError):
    """The registry holds nothing with the given name."""

    status = 404
    title = "Not found"


class Gone(NotFound):
    """The object with the given name was deleted."""

    status = 410
    title = "Gone"


class NotUploaded(NotFound):
    """The bytes are not stored, or were collected before a version referred to them; the remedy is to upload again."""

    title = "Not uploaded"


class Quarantined(LoratreeError):
    """A version that the request needs must not be used."""

    status = 403
    title = "Quarantined"


class Conflict(LoratreeError):
    """The input contradicts what the registry already holds.

    If the conflict is about an alias, `current` is the version that it names now, or 0 if it is not set.
    """

    status = 409
    title = "Conflict"

    def __init__(self, sentence: str, *, current: int | None = None, details: Sequence[str] = ()) -> None:
        super().__init__(sentence, details=details)
        self.current = current


class Corrupt(LoratreeError):
    """Stored bytes do not have the digest that names them."""

    status = 500
    title = "Corrupt data"


class Unavailable(LoratreeError):
    """A server, a disk or an optional package that the request needs is not available."""

    status = 503
    title = "Unavailable"


def fitted(sentence: str) -> str:
    """Return the sentence in at most MAX_SENTENCE characters: long words are cut first, then what is in its middle."""
    if len(sentence) > MAX_SENTENCE:
        sentence = " ".join(f"{word[:_WORD]}…" if len(word) > _WORD else word for word in sentence.split(" "))
    if len(sentence) > MAX_SENTENCE:
        half = MAX_SENTENCE // 2
        sentence = f"{sentence[: half - 1]}…{sentence[-half:]}"
    return sentence


def listed(problems: Sequence[str], *, limit: int = 20, length: int = 360) -> str:
    """Join the problems for one sentence: at most `limit`, in about `length` characters, then the number of the others.

    The first is always there; it is cut if it alone is longer.
    """
    shown = list(problems[:1]) if not problems or len(problems[0]) <= length else [f"{problems[0][: length - 1]}…"]
    for problem in problems[1:limit]:
        if sum(map(len, shown)) + len(problem) > length:
            break
        shown.append(problem)
    rest = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {rest} more" if rest else "")
