"""Bulk publish: many adapters that exist already, parents before children, going on after those that are refused."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Literal

from loratree_registry.bulk_rows import Row
from loratree_registry.errors import LoratreeError, Unavailable
from loratree_registry.paths import ancestors_of, parse_ref
from loratree_registry.protocol import Registry
from loratree_registry.submitting import check_adapter, prepare, publish_directory

Status = Literal["published", "already", "ready", "refused"]
Told = Callable[[int, int], object]  # how many rows are done, and of how many


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a row: `ref` is PATH@NUMBER of its version, `says` why it was refused."""

    line: int
    path: str
    status: Status
    ref: str | None = None
    digest: str | None = None
    says: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of a manifest, by line; `left` rows were not come to, because of `stopped`."""

    published: int
    already: int
    ready: int
    refused: int
    left: int
    stopped: str | None
    outcomes: list[Outcome]


def publish_rows(
    registry: Registry,
    rows: Sequence[Row],
    *,
    home: Path,
    jobs: int = 4,
    dry_run: bool = False,
    tell: Told = lambda *_: None,
) -> Report:
    """Publishes every row as `publish_directory` does, in `jobs` threads; what is there already is told as such.

    A row whose parent in the manifest was refused is refused too, unless it says itself what it is pinned to. Stops at
    Ctrl-C, and where the registry is Unavailable; the same call again goes on.
    """
    work = _Work(registry, rows, home, dry_run=dry_run)
    with ThreadPoolExecutor(jobs) as threads:
        try:
            for _, level in groupby(sorted(rows, key=lambda row: (row.depth, row.path)), attrgetter("depth")):
                begun = [threads.submit(work.publish, list(same)) for _, same in groupby(level, attrgetter("path"))]
                _finish(begun, lambda: tell(len(work.outcomes), len(rows)))
        except KeyboardInterrupt:
            work.stop("interrupted")
    return work.report()


def _finish(begun: list[Future[None]], tell: Callable[[], object]) -> None:
    for done in as_completed(begun):
        done.result()
        tell()


class _Work:
    """The rows of a manifest while they are published by several threads."""

    def __init__(self, registry: Registry, rows: Sequence[Row], home: Path, *, dry_run: bool) -> None:
        self._registry, self._home, self._dry_run = registry, home, dry_run
        self._total = len(rows)
        self._paths = {row.path for row in rows}
        self._refused: dict[str, int] = {}
        self._stopped: str | None = None
        self._stopping = threading.Event()
        self.outcomes: list[Outcome] = []

    def publish(self, same: list[Row]) -> None:
        """Publishes the rows of one path in the order of the file."""
        for row in sorted(same, key=attrgetter("line")):
            if self._stopping.is_set():
                return
            try:
                outcome = self._outcome(row)
                if outcome.status != "refused":
                    self._refused.pop(row.path, None)  # a later line of the path makes good an earlier one
            except Unavailable as error:
                self.stop(str(error))
                return
            except LoratreeError as error:
                outcome = Outcome(line=row.line, path=row.path, status="refused", says=str(error))
                self._refused[row.path] = row.line
            self.outcomes.append(outcome)

    def stop(self, reason: str) -> None:
        """Has the threads begin no other row."""
        self._stopped = self._stopped or reason
        self._stopping.set()

    def report(self) -> Report:
        """What became of the rows."""
        counts = {status: sum(outcome.status == status for outcome in self.outcomes) for status in _STATUSES}
        return Report(
            published=counts["published"],
            already=counts["already"],
            ready=counts["ready"],
            refused=counts["refused"],
            left=self._total - len(self.outcomes),
            stopped=self._stopped,
            outcomes=sorted(self.outcomes, key=attrgetter("line")),
        )

    def _outcome(self, row: Row) -> Outcome:
        above = [path for path in ancestors_of(row.path) if path in self._paths]
        if row.parent is None and above and above[-1] in self._refused:
            says = f"{above[-1]}, which it is below, was refused in line {self._refused[above[-1]]}: publish that first"
            self._refused[row.path] = row.line
            return Outcome(line=row.line, path=row.path, status="refused", says=says)
        return self._check(row, above) if self._dry_run else self._publish(row)

    def _publish(self, row: Row) -> Outcome:
        done = publish_directory(
            self._registry,
            row.directory,
            row.path,
            parent=row.parent,
            level=row.level,
            note=row.note,
            home=self._home,
        ).published
        ref, status = f"{done.version.path}@{done.version.number}", _PUBLISHED[done.created]
        return Outcome(line=row.line, path=row.path, status=status, ref=ref, digest=done.version.digest)

    def _is_coming(self, parent: str) -> bool:
        """Whether the manifest publishes at what a row names as its parent."""
        path = parse_ref(parent).path
        return path in self._paths and path not in self._refused

    def _check(self, row: Row, above: list[str]) -> Outcome:
        """Checks a row; as far as that goes where what it is pinned to is to be published before it."""
        if above if row.parent is None else self._is_coming(row.parent):
            check_adapter(self._registry, row.directory, row.path)
            return Outcome(line=row.line, path=row.path, status="ready")
        known = prepare(
            self._registry, row.directory, row.path, parent=row.parent, level=row.level, home=self._home
        ).known
        if known is None:
            return Outcome(line=row.line, path=row.path, status="ready")
        ref = f"{known.path}@{known.number}"
        return Outcome(line=row.line, path=row.path, status="already", ref=ref, digest=known.digest)


_STATUSES: tuple[Status, ...] = ("published", "already", "ready", "refused")
_PUBLISHED: dict[bool, Status] = {True: "published", False: "already"}
