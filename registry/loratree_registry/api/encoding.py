"""Answers that are compressed where it pays: large ones of text, for clients that take gzip."""

import gzip
from collections.abc import Iterable
from typing import Final

# A smaller answer is sent sooner than it is compressed, also through a tunnel. An answer that is kept is smaller too,
# so that no answer is compressed again and again.
LARGE: Final = 32 * 1024
VARY: Final = (b"vary", b"accept-encoding")
_LEVEL: Final = 1  # of 9: the others take twice to ten times as long for a tenth fewer bytes of digests

Headers = list[tuple[bytes, bytes]]


def takes_gzip(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether Accept-Encoding allows gzip."""
    text = b",".join(value for name, value in headers if name == b"accept-encoding")
    weights = dict(weigh(part) for part in text.decode("latin-1").lower().split(",") if part.strip())
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0


def compress(body: bytes) -> bytes:
    """Return a body as gzip; the same bytes for the same body."""
    return gzip.compress(body, _LEVEL, mtime=0)


def of_gzip(etag: bytes) -> bytes:
    """Return the ETag of the compressed form of what `etag` names: other bytes need another."""
    return etag[:-1] + b'-gzip"'


def weigh(part: str) -> tuple[str, float]:
    """Return what an Accept header lists, and its weight q: `text/html;q=0.8` gives ("text/html", 0.8)."""
    name, *parameters = (piece.strip() for piece in part.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0.0
    return name, 1.0
