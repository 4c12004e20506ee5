"""RFC 9457 problem documents: an error becomes a document, and the document becomes the same error again."""

from dataclasses import dataclass, replace
from typing import Final

from loratree_registry.core.text import one_line, shortened
from loratree_registry.errors import (
    Conflict,
    Corrupt,
    Gone,
    Invalid,
    LoratreeError,
    NotFound,
    NotUploaded,
    Quarantined,
    Unavailable,
)

MEDIA_TYPE: Final = "application/problem+json"
NO_ROUTE: Final = "no-route"
_URN: Final = "urn:loratree:problem:"
KINDS: Final = (Invalid, NotFound, Gone, NotUploaded, Conflict, Quarantined, Corrupt, Unavailable)
_KINDS: Final = {kind("").slug: kind for kind in KINDS}
MAX_DETAILS: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The reason why a request failed. `detail` is one sentence for a person; `type` and `status` are for programs.

    A conflict over an alias sets `current`: the version that the alias names now, or 0 if the alias is not set.
    `details` are the single problems if there are more than the sentence names, at most 1,000. A problem by the
    server's fault has `request_id`, the id in the answer's X-Request-ID, which the line in the server's log has too.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    current: int | None = None
    details: tuple[str, ...] | None = None
    request_id: str | None = None

    @property
    def slug(self) -> str:
        """The last part of `type`, such as `not-found`."""
        return self.type.removeprefix(_URN)


def problem(slug: str, title: str, status: int, detail: str, instance: str) -> Problem:
    """Create a problem of the type `slug` for the request to `instance`."""
    return Problem(type=_URN + slug, title=title, status=status, detail=detail, instance=instance)


def problem_of(error: LoratreeError, instance: str) -> Problem:
    """Convert an error to its problem document."""
    document = problem(error.slug, error.title, error.status, str(error), instance)
    if error.details:
        document = replace(document, details=error.details[:MAX_DETAILS])
    return replace(document, current=error.current) if isinstance(error, Conflict) else document


def refused(status: int, method: str, path: str, reason: str) -> Problem:
    """Describe a request that the framework refused; use its own `reason` if we have no sentence for the status."""
    if status == 404:
        return problem(NO_ROUTE, "No route", 404, f"this server has no route {path}: see /docs for its routes", path)
    if status == 405:
        detail = f"{path} does not take {method}: see /docs for the methods that it takes"
        return problem("method-not-allowed", "Method not allowed", 405, detail, path)
    if status == 413:
        return problem(
            "body-too-large", "Body too large", 413, f"the body is larger than {method} {path} takes: send less", path
        )
    return problem("bad-request", "Bad request", status, f"{method} {path} is refused: {reason}", path)


def ambiguous_length(method: str, path: str) -> Problem:
    """Describe a request whose body ends at two places."""
    detail = (
        f"{method} {path} is refused: it has both Content-Length and Transfer-Encoding, so where it ends is not clear; "
        "send one of them"
    )
    return problem("bad-request", "Bad request", 400, detail, path)


def late(what: str, seconds: float) -> Problem:
    """Describe a client that stopped within a header or a body."""
    detail = {
        "header": f"the request's header was not whole {seconds:g} s after its first byte: send it again",
        "body": f"no byte of the request's body came for {seconds:g} s: send it again",
    }[what]
    return problem("request-timeout", "Request Timeout", 408, detail, "/")


def too_long(size: int) -> Problem:
    """Describe a request's line and header fields that are longer than the server reads."""
    detail = f"the request's line and header fields are longer than {size} bytes: send less"
    return problem("header-too-large", "Request Header Fields Too Large", 431, detail, "/")


def malformed(reason: str) -> Problem:
    """Describe bytes that are no HTTP request."""
    detail = f"the request is not valid HTTP ({ascii(reason)[1:-1][:200]}): send it as RFC 9112 defines it"
    return problem("bad-request", "Bad Request", 400, detail, "/")


def misdirected(host: str, names: str, path: str) -> Problem:
    """Describe a request for another host."""
    detail = f"this server does not answer to the host {host[:80]!r}: expected one of {names}"
    return problem("misdirected-request", "Misdirected request", 421, detail, path)


def cross_site(origin: str, path: str) -> Problem:
    """Describe a write that another site's page sent."""
    detail = f"a page of {origin[:80]!r} may not write here: only pages of this server's own and programs may"
    return problem("cross-site-request", "Cross-site request", 403, detail, path)


def internal(path: str) -> Problem:
    """Describe a bug without its details, which may be private."""
    detail = "the server failed while it answered: its log tells why"
    return problem("internal-error", "Internal error", 500, detail, path)


def error_of(problem: Problem) -> LoratreeError:
    """Convert a problem document back to its error, with the same sentence on one line for a terminal.

    The sentence of a failure of the server's own ends with the request's id, by which its log tells more.
    """
    sentence = one_line(problem.detail)
    if problem.status >= 500 and problem.request_id:
        sentence += f" (request {shortened(one_line(problem.request_id))}, see the server's log)"
    if problem.slug in _KINDS:
        error = _KINDS[problem.slug](sentence, details=tuple(map(one_line, problem.details or ())))
        if isinstance(error, Conflict):
            error.current = problem.current
        return error
    if problem.slug != NO_ROUTE and 400 <= problem.status < 500 and problem.status != 408:
        return Invalid(sentence)
    return Unavailable(sentence)
