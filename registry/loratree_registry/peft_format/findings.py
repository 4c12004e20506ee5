"""The problems of an adapter, collected so that one error lists them all; standard library only."""

from collections import defaultdict
from dataclasses import dataclass

from loratree_registry.errors import Invalid, listed


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

    def check(self) -> None:
        """Raise Invalid if there is any problem, listing the refused features first."""
        refused = [
            f"{refusal.name} is not composed ({listed(where, limit=3)}): {refusal.why}"
            for refusal, where in self._refused.items()
        ]
        if refused or self._problems:
            raise Invalid(f"the adapter cannot be published: {listed([*refused, *self._problems])}")
