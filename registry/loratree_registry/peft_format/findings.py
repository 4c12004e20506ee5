"""What is wrong with an adapter, collected until all of it is known; standard library only."""

from collections import defaultdict
from dataclasses import dataclass

from loratree_registry.errors import Invalid, listed


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something PEFT can write that is not composed: its name, why, and what to do instead.

    `reshapes` tells that A and B then have other shapes or modules, so that checking those would only add noise.
    """

    name: str
    why: str
    reshapes: bool = False


class Findings:
    """The refused features with the places where they show, and every other problem, a clause each."""

    def __init__(self) -> None:
        self._refused: dict[Refusal, list[str]] = defaultdict(list)
        self._problems: list[str] = []

    def refuse(self, refusal: Refusal, where: str) -> None:
        """Notes a place at which a refused feature shows."""
        self._refused[refusal].append(where)

    def add(self, problem: str) -> None:
        """Notes a problem."""
        self._problems.append(problem)

    @property
    def reshaped(self) -> bool:
        """Tells whether a refused feature changes what the factors look like."""
        return any(refusal.reshapes for refusal in self._refused)

    def check(self) -> None:
        """Raises Invalid, listing the refused features and then every other problem; nothing where there are none."""
        refused = [
            f"{refusal.name} is not composed ({listed(where, limit=3)}): {refusal.why}"
            for refusal, where in self._refused.items()
        ]
        if refused or self._problems:
            raise Invalid(f"the adapter cannot be published: {listed([*refused, *self._problems])}")
