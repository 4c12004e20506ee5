r"""Regular expressions over module names, matched in linear time by RE2.

An adapter's config may come from anyone, and Python's `re`, which PEFT uses, backtracks: `(a+)+b` can run for hours.
RE2 never backtracks. It has to decide as `re` does, so a pattern that the two may read differently is refused by name.
"""

import re
import warnings
from typing import Final

MAX_LENGTH: Final = 512
# What RE2 reads differently or not at all: escapes but \d \w \s and punctuation, (?…), {,n} and [:class:].
_DIFFERENT: Final = re.compile(r"\\(.?)|\(\?(?!:).?|\{,|\[:", re.DOTALL)


class NameRegex:
    r"""One pattern, matched as PEFT does: re.match(r"(.*\.)?(pattern)$", name), or re.fullmatch if `whole`.

    Raises ValueError if the pattern is no regular expression, or one that RE2 may read differently than `re`.
    """

    def __init__(self, pattern: str, *, whole: bool = False) -> None:
        self._classes = ", ".join(sorted(_check(pattern)))
        import re2  # here, because the composer's arithmetic runs where google-re2 is not installed

        options = re2.Options()
        options.log_errors = False
        try:
            self._regex = re2.compile(pattern if whole else rf"(?:.*\.)?(?:{pattern})", options)
        except re2.error as error:
            raise ValueError(f"RE2 does not take it ({_text(error)})") from error

    def matches(self, name: str) -> bool:
        r"""Return whether the pattern matches `name`.

        Raises ValueError if the name is not ASCII and the pattern has \d, \w or \s: RE2 knows these for ASCII alone, so
        its answer could differ from PEFT's.
        """
        if self._classes and not name.isascii():
            raise ValueError(f"the name {name[:80]!a} is not ASCII, so it cannot be checked against {self._classes}")
        return self._regex.fullmatch(name) is not None


def widened(pattern: str) -> str:
    r"""Return the pattern without lookarounds and \b, which RE2 has not: it matches all that the pattern does, or more.

    A lookaround that holds a group stays, and NameRegex refuses it.
    """
    return re.sub(r"\(\?<?[=!](?:[^()\\]|\\.)*\)|(?<!\\)((?:\\\\)*)\\[bB]", r"\1", pattern)


def _check(pattern: str) -> set[str]:
    """Raise ValueError unless RE2 and `re` read the pattern alike; return its character classes, such as \\w."""
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"it has {len(pattern)} characters, at most {MAX_LENGTH} are allowed")
    classes = set()
    for match in _DIFFERENT.finditer(pattern):
        if match[1] and match[1] in "dDwWsS":
            classes.add(match[0])
        elif not match[1] or match[1].isalnum():
            end = "…)" if match[0].startswith("(") else ""
            raise ValueError(f"it uses {match[0]}{end}, which is not matched here")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of sets that a later Python may read differently
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"it is no regular expression ({error})") from error
    return classes


def _text(error: Exception) -> str:
    reason = error.args[0] if error.args else error
    return reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
