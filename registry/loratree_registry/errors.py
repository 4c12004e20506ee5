"""Errors that loratree raises, each with its HTTP status.

A message is one sentence that a person can act on: what is wrong, what was expected, what was got, what to do.
The API turns an error into an RFC 9457 problem document; the command line prints the sentence and exits with 1.
"""


class LoratreeError(Exception):
    """The base of every error that loratree raises on purpose; `status` is its HTTP status."""

    status = 500
    title = "Internal error"

    @property
    def slug(self) -> str:
        """The error's name in a problem document's `type`, such as `not-found`."""
        return self.title.lower().replace(" ", "-")


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

    def __init__(self, sentence: str, *, current: int | None = None) -> None:
        super().__init__(sentence)
        self.current = current


class Corrupt(LoratreeError):
    """Stored bytes do not have the digest that names them."""

    status = 500
    title = "Corrupt data"


class Unavailable(LoratreeError):
    """A server, a disk or an optional package that the request needs is not available."""

    status = 503
    title = "Unavailable"


def listed(problems: list[str], *, limit: int = 20) -> str:
    """Join the problems into a list for one sentence: the first `limit`, then the number of the others."""
    shown = "; ".join(problems[:limit])
    rest = len(problems) - limit
    return f"{shown}; and {rest} more" if rest > 0 else shown
