"""What an import finds as it goes: what it adds, what is there already, and what contradicts that."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

from loratree_registry.errors import Conflict, listed

CHUNK: Final = 1000  # lines that are looked up and inserted together
MOST: Final = 1000  # conflicts and differences that are gathered
T = TypeVar("T")


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """The items in lists of `size`."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


class ImportReport:
    """Counts of the lines that are `added` and `kept`, by kind; `differences` of what is kept; and conflicts."""

    def __init__(self) -> None:
        self.added, self.kept = Counter[str](), Counter[str]()
        self.differences: list[str] = []
        self.conflicts: list[str] = []

    def count(self, name: str, *, kept: bool) -> None:
        """Counts a line of one kind."""
        (self.kept if kept else self.added)[name] += 1

    def differ(self, difference: str) -> None:
        """Notes what is there in another state, and stays so."""
        if len(self.differences) < MOST:
            self.differences.append(difference)

    def conflict(self, conflict: str) -> None:
        """Notes what contradicts the registry. Raises Conflict where there is no end of it."""
        self.conflicts.append(conflict)
        if len(self.conflicts) == MOST:
            self.refuse()

    def refuse(self) -> None:
        """Raises Conflict with all that was noted, if anything was."""
        if self.conflicts:
            raise Conflict(
                f"the export contradicts what is here, so nothing was imported: {listed(self.conflicts)}; "
                "import it into an empty registry, or export the part that is missing here"
            )
