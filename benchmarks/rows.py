"""A measured claim, and how it is measured: things side by side in one process, interleaved, medians."""

import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

Run = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Row:
    """`ours`, `theirs` and the `floor` in `unit`; `ratio` is theirs over ours, or ours over theirs for an overhead.

    `of` tells apart rows of one name; `bar` is what the row was asked to hold.
    """

    name: str
    ours: float
    theirs: float | None
    floor: float | None
    ratio: float | None
    unit: str
    of: str = ""
    bar: str = ""


def interleaved(runs: Sequence[Run], *, repeats: int, reset: Run | None = None) -> list[float]:
    """The median seconds of each run, taken in turn; `reset` comes before each, untimed. One round warms up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, taken in zip(runs, seconds, strict=True):
            if reset is not None:
                reset()
            taken.append(timed(run))
    return [statistics.median(taken[1:]) for taken in seconds]


def in_child(module: str, name: str, folder: str, repeats: int) -> list[Row]:
    """The rows that a benchmark prints as JSON if it is asked for one name, in a process of its own."""
    command = [sys.executable, "-m", module, "--row", name, folder, "--repeats", str(repeats)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [Row(**fields) for fields in json.loads(done.stdout.splitlines()[-1])]


def timed(run: Run) -> float:
    """The seconds that one call takes, the collector held back."""
    with _collector_off():
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def write_json(rows: Sequence[Row], file: Path) -> None:
    """Writes the rows as a list of objects."""
    file.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=2) + "\n")


def print_table(rows: Sequence[Row]) -> None:
    """Prints the rows under their columns."""
    width = max((len(row.name) for row in rows), default=4) + 1
    print(f"{'name':<{width}}{'ours':>12}{'theirs':>12}{'floor':>12}{'ratio':>8}  unit")
    for row in rows:
        numbers = f"{_number(row.ours):>12}{_number(row.theirs):>12}{_number(row.floor):>12}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        print(f"{row.name:<{width}}{numbers}{ratio:>8}  {row.unit:<4}{row.bar:<7} {row.of}".rstrip())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


@contextmanager
def _collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
