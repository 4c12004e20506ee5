"""What a run of the matrix came to, for people."""

from collections.abc import Sequence

from tests.crash.matrix import Row

_LINE = "{:<42} {:>7} {:>6} {:>5} {:>10}"


def table(rows: Sequence[Row], *, seconds: float) -> str:
    """A line a row: its points, how many were tried, how many struck, and the violations, which follow in words."""
    lines = [_LINE.format("crash matrix", "points", "tried", "hit", "violations")]
    lines += [_LINE.format(row.scene.name, *row.counts) for row in rows]
    totals = [sum(counts) for counts in zip(*(row.counts for row in rows), strict=True)]
    lines.append(_LINE.format(f"all, in {seconds:.0f} s", *totals))
    return "\n".join([*lines, *(f"{row.scene.name}: {broken}" for row in rows for broken in row.broken)])
