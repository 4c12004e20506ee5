"""RFC 9457 problem documents: how an error travels, and how it becomes the same error again."""

from dataclasses import dataclass
from typing import Final

from loratree_registry.errors import Conflict, Corrupt, Invalid, LoratreeError, NotFound, Unavailable
from loratree_registry.text import one_line

MEDIA_TYPE: Final = "application/problem+json"
NO_ROUTE: Final = "no-route"
_URN: Final = "urn:loratree:problem:"
_KINDS: Final = {kind().slug: kind for kind in (Invalid, NotFound, Conflict, Corrupt, Unavailable)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Why a request failed. `detail` is one sentence for a person; `type` and `status` are for programs."""

    type: str
    title: str
    status: int
    detail: str
    instance: str

    @property
    def slug(self) -> str:
        """The last part of `type`, such as `not-found`."""
        return self.type.removeprefix(_URN)


def problem(slug: str, title: str, status: int, detail: str, instance: str) -> Problem:
    """A problem of the type `slug`, met by the request for `instance`."""
    return Problem(type=_URN + slug, title=title, status=status, detail=detail, instance=instance)


def problem_of(error: LoratreeError, instance: str) -> Problem:
    """The problem document of an error."""
    return problem(error.slug, error.title, error.status, str(error), instance)


def error_of(problem: Problem) -> LoratreeError:
    """The error that a problem document tells of, with the same sentence, in one line for a terminal."""
    sentence = one_line(problem.detail)
    if problem.slug in _KINDS:
        return _KINDS[problem.slug](sentence)
    if problem.slug != NO_ROUTE and 400 <= problem.status < 500:
        return Invalid(sentence)
    return Unavailable(sentence)
