"""What a run of the matrix came to, for people."""

from collections.abc import Sequence

from tests.crash.matrix import Row

_LINE = "{:<42} {:>7} {:>6} {:>6} {:>10}"
HEAD = _LINE.format("crash matrix", "points", "tried", "hit", "violations")


def line(row: Row) -> str:
    """A scene's points, how many were tried, how many struck, and the violations, which follow in words."""
    return "\n".join([_LINE.format(row.scene.name, *row.counts), *(f"  {broken}" for broken in row.broken)])


def total(rows: Sequence[Row], *, seconds: float) -> str:
    """The sums of all lines."""
    return _LINE.format(f"all, in {seconds:.0f} s", *map(sum, zip(*(row.counts for row in rows), strict=True)))
