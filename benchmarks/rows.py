"""A measured claim, and how it is measured: things side by side in one process, interleaved, medians."""

import argparse
import dataclasses
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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


MakeRows = Callable[[Path, str, int], Sequence[Row]]  # for a folder, the name of the row, and the repeats


def interleaved(runs: Sequence[Run], *, repeats: int, reset: Run | None = None) -> list[float]:
    """The median seconds of each run, taken in turn; `reset` comes before each, untimed. One round warms up."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats + 1):
        for run, taken in zip(runs, seconds, strict=True):
            if reset is not None:
                reset()
            taken.append(timed(run))
    return [statistics.median(taken[1:]) for taken in seconds]


def run_rows(
    module: str, description: str | None, rows: Mapping[str, MakeRows], *, prepare: Callable[[Path], object]
) -> None:
    """A benchmark's command line: `prepare` fills a folder, then each row is measured in a process of its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--only", nargs="*", choices=rows, default=list(rows), help="measure these rows alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--row", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        name, folder = options.row
        print(json.dumps([vars(row) for row in rows[name](Path(folder), name, options.repeats)]))
        return
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        found = [row for name in options.only for row in in_child(module, name, folder, options.repeats)]
    print_table(found)
    if options.json:
        write_json(found, options.json)


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
