"""The problems of an adapter, collected so that one error lists them all; standard library only."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from loratree_registry.errors import Invalid, listed

_NAMES: Final = re.compile(r"\S*\.\S+|\d+")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A feature that PEFT can write and that is not composed. `why` gives the reason and the remedy.

    `reshapes` is true if the feature changes the shapes or the modules of A and B: their checks would only add noise.
    """

    name: str
    why: str
    reshapes: bool = False


class Findings:
    """The refused features of an adapter, each with its places, and every other problem as one clause."""

    def __init__(self) -> None:
        self._refused: dict[Refusal, list[str]] = defaultdict(list)
        self._problems: list[str] = []

    def refuse(self, refusal: Refusal, where: str) -> None:
        """Record a place that uses a refused feature."""
        self._refused[refusal].append(where)

    def add(self, problem: str) -> None:
        """Record a problem."""
        self._problems.append(problem)

    @property
    def reshaped(self) -> bool:
        """True if a refused feature changes the shapes or the modules of A and B."""
        return any(refusal.reshapes for refusal in self._refused)

    def check(self, find_cause: Callable[[], str | None] = lambda: None) -> None:
        """Raise Invalid if there is any problem: the cause that `find_cause` gives, or else the refused features first.

        The error's details list every problem.
        """
        clauses = [
            f"{refusal.name} is not composed ({listed(where, limit=3, length=160)}): {refusal.why}"
            for refusal, where in self._refused.items()
        ]
        clauses += self._problems
        if not clauses:
            return
        opening = "the adapter cannot be published: "
        cause = find_cause() if len(self._problems) > 1 else None
        sentence = cause or listed(_grouped(clauses), length=440)
        raise Invalid(opening + sentence, details=clauses if len(clauses) > 1 else ())


def _grouped(clauses: list[str]) -> list[str]:
    """Return the first of all clauses that differ in names and numbers alone, with the number of the others."""
    groups: dict[str, list[str]] = defaultdict(list)
    for clause in clauses:
        groups[_NAMES.sub("*", clause)].append(clause)
    return [first if not others else f"{first} (and {len(others)} more like it)" for first, *others in groups.values()]
