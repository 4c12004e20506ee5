"""The state of a version in words: stale, older, withdrawn, quarantined."""

from dataclasses import dataclass
from typing import Final

from loratree_registry.core.records import Mark
from loratree_registry.core.text import one_line

# The first one that is there colours the whole state.
STYLES: Final = {"quarantined": "bold red", "withdrawn": "red", "stale": "yellow", "older": "yellow", "deleted": "dim"}


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What is to be known of a version before it is used. Without anything, the state is `sound` in words.

    `stale` is about the version that it was trained on, and `head` about itself: the head, if this version is older.
    `other` says what it was trained on, if another version stands above it. A mark is True where its reason is not
    known. `str` gives the words with their reasons: `stale, withdrawn: it diverges`.
    """

    stale: bool = False
    other: str | None = None
    head: int | None = None
    withdrawn: Mark | bool | None = None
    deleted: bool = False
    quarantined: Mark | bool | None = None
    follow: str | None = None
    sound: str = "current"

    def __str__(self) -> str:
        reasons = self._reasons()
        return self._join([f"{word}: {reasons[word]}" if word in reasons else word for word in self._words()])

    def words(self) -> str:
        """Return the words without the reasons: `stale, withdrawn`."""
        return self._join(self._words())

    def fit(self, width: int) -> str:
        """Return the words, all of them, and as much of the reason as fits into `width` cells."""
        from rich.cells import cell_len

        from loratree_cli.screens.terminal import shorten

        whole, words = one_line(str(self)), self.words()
        if cell_len(whole) <= width:
            return whole
        has_one_reason = len(self._reasons()) == 1 and not self.follow  # it is the end then, after all of the words
        cut = shorten(whole, width) if has_one_reason and cell_len(words) + 4 <= width else words
        return words if cut.endswith(": …") else cut

    @property
    def style(self) -> str:
        """The colour of the gravest word, as rich writes it."""
        words = {"older", *self._words()} if self.other else self._words()
        return next((style for word, style in STYLES.items() if word in words), "green")

    def _words(self) -> list[str]:
        marks = (
            (self.other or "", self.other),
            ("stale", self.stale and not self.other),
            ("older", self.head),
            ("quarantined", self.quarantined),
            ("withdrawn", self.withdrawn),
            ("deleted", self.deleted),
        )
        return [word for word, is_set in marks if is_set]

    def _reasons(self) -> dict[str, str]:
        marks = (("quarantined", self.quarantined), ("withdrawn", self.withdrawn))
        older = {} if self.head is None else {"older": f"now @{self.head}"}
        return older | {word: mark.reason for word, mark in marks if isinstance(mark, Mark)}

    def _join(self, words: list[str]) -> str:
        followed = [f"by {self.follow}"] if self.follow else []
        return ", ".join([*(words or [self.sound]), *followed]).removeprefix(", ")
