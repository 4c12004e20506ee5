"""Bulk publish: many adapters from one manifest, parents before children; a refused line does not stop the rest."""

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final, Literal, cast

from loratree_registry.core.paths import Level, ancestors_of, base_of
from loratree_registry.core.progress import Counter, Progress, Stopped, silent
from loratree_registry.core.records import PinSource
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Invalid, LoratreeError, NotFound, Unavailable
from loratree_registry.workspace.manifest_lines import Row
from loratree_registry.workspace.places import check_beside, find_level_beside
from loratree_registry.workspace.planned import PlannedRegistry
from loratree_registry.workspace.publish import prepare, publish_directory

INTERRUPTED: Final = "interrupted"

Status = Literal["published", "already", "ready", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a row: `ref` is PATH@NUMBER of its version, `says` is why the row was refused.

    `level` is the level of its node, in a dry run the level that it will have; null if the row was refused.
    `found` is how its pin was found, and `why` a sentence about it; both are null if the row was refused. `details` are
    the single problems of the adapter, one clause each, if there are more than `says` names. `warnings` are what
    `loratree publish` warns of, and `other_base` is true if one of them says that the pin is assumed although the
    config names another base.
    """

    line: int
    path: str
    status: Status
    level: Level | None = None
    ref: str | None = None
    digest: str | None = None
    found: PinSource | None = None
    why: str | None = None
    says: str | None = None
    details: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    other_base: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a manifest, by line; `left` rows were not tried, for the reason in `stopped`.

    `assumed` counts the rows of the first three whose pin is assumed, because nothing names it, and `other_base` those
    of them that were not there before and whose config names another base. `makes` counts, in a dry run, the nodes
    that are missing, also those without a version of their own, by their level.
    """

    published: int
    already: int
    ready: int
    assumed: int
    other_base: int
    refused: int
    left: int
    stopped: str | None
    makes: dict[Level, int]
    outcomes: list[Outcome]


def publish_rows(
    registry: Registry,
    rows: Sequence[Row],
    *,
    home: Path,
    jobs: int = 4,
    dry_run: bool = False,
    assume: bool = True,
    progress: Progress = silent,
) -> Report:
    """Publish every row as `publish_directory` does, in `jobs` threads, and report the rows already published.

    If a row is refused, the rows below its path are refused too, unless they name their own parent. Stops at Ctrl-C
    (`stopped` is INTERRUPTED) without finishing a row, or before the next row if the registry is Unavailable; the same
    call again continues.
    """
    work = _Work(registry, rows, home, dry_run=dry_run, assume=assume, progress=progress)
    work.look_beside(rows)
    with ThreadPoolExecutor(jobs) as threads:
        try:
            for _, level in groupby(sorted(rows, key=lambda row: (row.depth, row.path)), attrgetter("depth")):
                begun = [threads.submit(work.publish, list(same)) for _, same in groupby(level, attrgetter("path"))]
                _wait_for(begun)
        except KeyboardInterrupt:
            work.cancel()
        except BaseException:
            work.cancel()
            raise
    return work.report()


def _wait_for(begun: list[Future[None]]) -> None:
    for done in as_completed(begun):
        done.result()


class _Work:
    """The rows of a manifest, and their outcomes so far, shared by the threads that publish them."""

    def __init__(
        self, registry: Registry, rows: Sequence[Row], home: Path, *, dry_run: bool, assume: bool, progress: Progress
    ) -> None:
        self._registry, self._home, self._dry_run, self._assume = registry, home, dry_run, assume
        self._planned = PlannedRegistry(registry)  # of a dry run
        self._total = len(rows)
        self._paths = {row.path for row in rows}
        self._refused: dict[str, int] = {}
        self._beside: dict[str, tuple[Level, Level | None]] = {}  # of a node, and of those directly below it
        self._stopped: str | None = None
        self._stopping, self._cancelled = threading.Event(), threading.Event()
        self._counter = Counter(progress, "checking" if dry_run else "publishing", len(rows), "adapters")
        self.outcomes: list[Outcome] = []

    def look_beside(self, rows: Sequence[Row]) -> None:
        """Find, before a row is published, the levels of the nodes beside new ones that no row gives a level."""
        for parent in sorted({row.path.rpartition("/")[0] for row in rows if row.level is None}):
            with suppress(NotFound):
                self._beside[parent] = self._registry.node(parent).level, find_level_beside(self._registry, parent)

    def publish(self, same: list[Row]) -> None:
        """Publish the rows of one path in the order of the file."""
        for row in sorted(same, key=attrgetter("line")):
            if self._stopping.is_set():
                return
            try:
                outcome = self._process(row)
                if outcome.status != "refused":
                    self._refused.pop(row.path, None)  # a later line may publish a path that an earlier line could not
            except Unavailable as error:
                if not self._cancelled.is_set():  # the error may be how a cancelled upload ended
                    self.stop(str(error))
                return
            except Stopped:
                return
            except LoratreeError as error:
                outcome = Outcome(
                    line=row.line, path=row.path, status="refused", says=str(error), details=error.details
                )
                self._refused[row.path] = row.line
            self.outcomes.append(outcome)
            self._counter.add()

    def cancel(self) -> None:
        """Make the threads stop within their rows."""
        self._cancelled.set()
        self.stop(INTERRUPTED)

    def stop(self, reason: str) -> None:
        """Make the threads stop before their next row."""
        self._stopped = self._stopped or reason
        self._stopping.set()

    def report(self) -> Report:
        """Return the report of the rows so far."""
        counts = {status: sum(outcome.status == status for outcome in self.outcomes) for status in _STATUSES}
        return Report(
            published=counts["published"],
            already=counts["already"],
            ready=counts["ready"],
            assumed=sum(outcome.found == "assumed" for outcome in self.outcomes),
            other_base=sum(outcome.other_base for outcome in self.outcomes),
            refused=counts["refused"],
            left=self._total - len(self.outcomes),
            stopped=self._stopped,
            makes=self._planned.count_made(),
            outcomes=sorted(self.outcomes, key=attrgetter("line")),
        )

    def _check_wanted(self, *_: object) -> None:
        """Raise Stopped if nobody wants the rows any more: it is called while a row's bytes are read and sent."""
        if self._cancelled.is_set():
            raise Stopped

    def _process(self, row: Row) -> Outcome:
        above = [path for path in ancestors_of(row.path) if path in self._paths]
        if row.parent is None and above and above[-1] in self._refused:
            says = f"{above[-1]}, which it is below, was refused in line {self._refused[above[-1]]}: publish that first"
            self._refused[row.path] = row.line
            return Outcome(line=row.line, path=row.path, status="refused", says=says)
        self._check_level(row)
        return self._check(row) if self._dry_run else self._publish(row)

    def _check_level(self, row: Row) -> None:
        """Raise Invalid if a row makes a node of another level than those beside it, and does not say so."""
        parent = row.path.rpartition("/")[0]
        if row.level is None and parent in self._beside:
            try:
                check_beside(row.path, *self._beside[parent])
            except Invalid:
                if self._planned.find_level(row.path) is None:
                    raise

    def _publish(self, row: Row) -> Outcome:
        done = publish_directory(
            self._registry,
            row.directory,
            row.path,
            parent=row.parent,
            level=row.level,
            note=row.note,
            home=self._home,
            assume=self._assume,
            asking=False,
            progress=self._check_wanted,
        )
        version, status = done.published.version, _PUBLISHED[done.published.created]
        ref, why = f"{version.path}@{version.number}", done.pin.why if done.published.created else None
        return Outcome(
            line=row.line,
            path=row.path,
            status=status,
            level=version.level,
            ref=ref,
            digest=version.digest,
            found=version.pin.found,
            why=why,
            warnings=tuple(done.published.warnings),
            other_base=done.published.created and done.pin.other_base is not None,
        )

    def _check(self, row: Row) -> Outcome:
        """Check a row without publishing it, as if the rows that come before it were published."""
        registry = cast("Registry", self._planned)
        prepared = prepare(
            registry,
            row.directory,
            row.path,
            parent=row.parent,
            level=row.level,
            home=self._home,
            assume=self._assume,
            asking=False,
            progress=self._check_wanted,
        )
        known, pin = prepared.known, prepared.pin
        if known is None:
            manifest = registry.base_manifest(base_of(row.path))
            planned = self._planned.add(row.path, row.level, prepared, manifest)
            return Outcome(
                line=row.line,
                path=row.path,
                status="ready",
                level=planned.level,
                found=pin.found,
                why=pin.why,
                warnings=tuple(pin.warnings),
                other_base=pin.other_base is not None,
            )
        return Outcome(
            line=row.line,
            path=row.path,
            status="already",
            level=known.level,
            ref=f"{known.path}@{known.number}",
            digest=known.digest,
            found=known.pin.found,
        )


_STATUSES: tuple[Status, ...] = ("published", "already", "ready", "refused")

_PUBLISHED: dict[bool, Status] = {True: "published", False: "already"}
