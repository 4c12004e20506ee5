"""The loss ladder: the loss of each level's model on each level's held-out text, and whether each level helps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

STANDARD_ERRORS: Final = 3


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean and its standard error, s/√n."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict whether the model of `row` beats the model of the row `above` on the text of its own level, `text`.

    `gain` is the mean over the documents of (loss above − loss), in nats per byte. Both models read the same documents,
    so the standard error is that of the paired differences.
    """

    row: str
    above: str
    text: str
    gain: Mean

    @property
    def helps(self) -> bool:
        """Whether the gain is more than three of its standard errors."""
        return self.gain.value > STANDARD_ERRORS * self.gain.error

    def sentence(self) -> str:
        """Write the verdict in plain words."""
        amount = f"{abs(self.gain.value):.3f} ± {self.gain.error:.3f} nats a byte"
        if self.helps:
            return f"{self.row} beats {self.above} on {self.text} text by {amount}{self._times()}"
        direction = "better" if self.gain.value > 0 else "worse"
        return (
            f"{self.row} does not help: on {self.text} text it is {direction} than {self.above} by {amount}, "
            f"and {STANDARD_ERRORS} standard errors are needed"
        )

    def _times(self) -> str:
        return f", {self.gain.value / self.gain.error:.0f} standard errors" if self.gain.error else ""


@dataclass(frozen=True, slots=True)
class Ladder:
    """A table: losses[row][column] holds each held-out document's loss, in nats per byte; row i is level i's model."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    losses: tuple[tuple[tuple[float, ...], ...], ...]

    def cell(self, row: int, column: int) -> Mean:
        """Return the mean loss of one model on one level's text."""
        return mean(self.losses[row][column])

    def verdicts(self) -> list[Verdict]:
        """Judge for each level below the base whether it beats the row above in its own column."""
        return [self._verdict(level) for level in range(1, len(self.rows))]

    def cost(self) -> str:
        """Write how the loss on the base's own text changes from the first row to the last: the price of the levels."""
        first, last = self.cell(0, 0).value, self.cell(-1, 0).value
        change = "worse" if last > first else "better"
        return f"from {self.rows[0]} to {self.rows[-1]}, {self.columns[0]} text gets {change}: {first:.3f} → {last:.3f}"

    def _verdict(self, level: int) -> Verdict:
        above, own = self.losses[level - 1][level], self.losses[level][level]
        gain = mean([before - after for before, after in zip(above, own, strict=True)])
        return Verdict(self.rows[level], self.rows[level - 1], self.columns[level], gain)


def mean(values: Sequence[float]) -> Mean:
    """Compute the mean of at least two values, with its standard error from the sample's standard deviation."""
    count = len(values)
    value = math.fsum(values) / count
    variance = math.fsum((each - value) ** 2 for each in values) / (count - 1)
    return Mean(value, math.sqrt(variance / count))
