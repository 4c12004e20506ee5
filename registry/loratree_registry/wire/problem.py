"""RFC 9457 problem documents: how an error travels, and how it becomes the same error again."""

from dataclasses import dataclass, replace
from typing import Final

from loratree_registry.core.text import one_line
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a request failed. `detail` is one sentence for a person; `type` and `status` are for programs.

    `current` is there in a conflict over an alias: the version that it names now, 0 where it is not set.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    current: int | None = None

    @property
    def slug(self) -> str:
        """The last part of `type`, such as `not-found`."""
        return self.type.removeprefix(_URN)


def problem(slug: str, title: str, status: int, detail: str, instance: str) -> Problem:
    """A problem of the type `slug`, met by the request for `instance`."""
    return Problem(type=_URN + slug, title=title, status=status, detail=detail, instance=instance)


def problem_of(error: LoratreeError, instance: str) -> Problem:
    """The problem document of an error."""
    found = problem(error.slug, error.title, error.status, str(error), instance)
    return replace(found, current=error.current) if isinstance(error, Conflict) else found


def refused(status: int, method: str, path: str, reason: str) -> Problem:
    """The problem of a request that the framework refused; `reason` is its own, for what we have no sentence for."""
    if status == 404:
        return problem(NO_ROUTE, "No route", 404, f"this server has no route {path}: see /docs for those it has", path)
    if status == 405:
        detail = f"{path} does not take {method}: see /docs for what it takes"
        return problem("method-not-allowed", "Method not allowed", 405, detail, path)
    if status == 413:
        return problem(
            "body-too-large", "Body too large", 413, f"the body is larger than {method} {path} takes: send less", path
        )
    return problem("bad-request", "Bad request", status, f"{method} {path} is refused: {reason}", path)


def misdirected(host: str, names: str, path: str) -> Problem:
    """The problem of a request for another host."""
    detail = f"this server does not answer to the host {host[:80]!r}: expected one of {names}"
    return problem("misdirected-request", "Misdirected request", 421, detail, path)


def cross_site(origin: str, path: str) -> Problem:
    """The problem of a write that another site's page sent."""
    detail = f"a page of {origin[:80]!r} may not write here: only pages of this server's own and programs may"
    return problem("cross-site-request", "Cross-site request", 403, detail, path)


def internal(path: str) -> Problem:
    """The problem of a bug, of which it tells nothing."""
    detail = "the server failed while it answered: its log tells why"
    return problem("internal-error", "Internal error", 500, detail, path)


def error_of(problem: Problem) -> LoratreeError:
    """The error that a problem document tells of, with the same sentence, in one line for a terminal."""
    sentence = one_line(problem.detail)
    if problem.slug in _KINDS:
        error = _KINDS[problem.slug](sentence)
        if isinstance(error, Conflict):
            error.current = problem.current
        return error
    if problem.slug != NO_ROUTE and 400 <= problem.status < 500:
        return Invalid(sentence)
    return Unavailable(sentence)
