"""Report of an import: what it adds, what already exists, and what conflicts with the registry."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

from loratree_registry.errors import Conflict, listed

CHUNK: Final = 1000  # lines that one query looks up or inserts
MOST: Final = 1000  # the highest number of conflicts, of differences, and of warnings that are collected
T = TypeVar("T")


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Yield the items in lists of `size`; the last list may be shorter."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


class ImportReport:
    """Counts of the lines that are `added` and `kept`, by kind; differences of kept records; warnings; conflicts."""

    def __init__(self) -> None:
        self.added, self.kept = Counter[str](), Counter[str]()
        self.differences: list[str] = []
        self.warnings: list[str] = []
        self.conflicts: list[str] = []

    def count(self, name: str, *, kept: bool) -> None:
        """Count a line of the kind `name`."""
        (self.kept if kept else self.added)[name] += 1

    def differ(self, difference: str) -> None:
        """Note an existing record that differs from the export and stays as it is."""
        if len(self.differences) < MOST:
            self.differences.append(difference)

    def warn(self, warning: str) -> None:
        """Note what is to be known of a record that the import adds."""
        if len(self.warnings) < MOST:
            self.warnings.append(warning)

    def conflict(self, conflict: str) -> None:
        """Note a line that contradicts the registry. Raises Conflict after MOST conflicts."""
        self.conflicts.append(conflict)
        if len(self.conflicts) == MOST:
            self.refuse()

    def refuse(self) -> None:
        """Raise Conflict with every noted conflict, if there is one."""
        if self.conflicts:
            raise Conflict(
                f"the export contradicts this registry, so nothing was imported: {listed(self.conflicts)}; "
                "import it into an empty registry, or export only the part that is missing here"
            )
