"""Bulk publish: many adapters from one manifest, parents before children; a refused line does not stop the rest."""

import codecs
import csv
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, Final, Literal, cast, get_args

from loratree_registry.core.paths import LEVELS, Level, ancestors_of, base_of, parse_path, parse_ref
from loratree_registry.core.progress import Counter, Progress, Stopped, silent
from loratree_registry.core.records import PinSource
from loratree_registry.core.registry import Registry
from loratree_registry.core.strict_json import parse_json
from loratree_registry.core.text import check_text
from loratree_registry.disk.plain_files import open_plain
from loratree_registry.errors import Invalid, LoratreeError, Unavailable, listed
from loratree_registry.workspace.planned import PlannedRegistry
from loratree_registry.workspace.publish import prepare, publish_directory

FIELDS: Final = ("directory", "path", "parent", "level", "note")
MAX_LINE: Final = 64 * 1024
INTERRUPTED: Final = "interrupted"
_REMEDY: Final = "give a file of JSON lines, or a .csv whose first line is the names: directory,path"

Status = Literal["published", "already", "ready", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One adapter to publish: its folder, its path, and the options of `loratree publish` for it."""

    line: int
    directory: Path
    path: str
    parent: str | None
    level: Level | None
    note: str | None

    @property
    def depth(self) -> int:
        """The number of nodes above the path."""
        return len(ancestors_of(self.path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of a row: `ref` is PATH@NUMBER of its version, `says` is why the row was refused.

    `found` is how its pin was found, and `why` a sentence about it; both are null if the row was refused. `details` are
    the single problems of the adapter, one clause each, if there are more than `says` names. `warnings` are what
    `loratree publish` warns of, and `other_base` is true if one of them says that the pin is assumed although the
    config names another base.
    """

    line: int
    path: str
    status: Status
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
    of them that were not there before and whose config names another base.
    """

    published: int
    already: int
    ready: int
    assumed: int
    other_base: int
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
    assume: bool = True,
    progress: Progress = silent,
) -> Report:
    """Publish every row as `publish_directory` does, in `jobs` threads, and report the rows already published.

    If a row is refused, the rows below its path are refused too, unless they name their own parent. Stops at Ctrl-C
    (`stopped` is INTERRUPTED) without finishing a row, or before the next row if the registry is Unavailable; the same
    call again continues.
    """
    work = _Work(registry, rows, home, dry_run=dry_run, assume=assume, progress=progress)
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
        self._stopped: str | None = None
        self._stopping, self._cancelled = threading.Event(), threading.Event()
        self._counter = Counter(progress, "checking" if dry_run else "publishing", len(rows), "adapters")
        self.outcomes: list[Outcome] = []

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
        return self._check(row) if self._dry_run else self._publish(row)

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
            progress=self._check_wanted,
        )
        version, status = done.published.version, _PUBLISHED[done.published.created]
        ref, why = f"{version.path}@{version.number}", done.pin.why if done.published.created else None
        return Outcome(
            line=row.line,
            path=row.path,
            status=status,
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
            progress=self._check_wanted,
        )
        known, pin = prepared.known, prepared.pin
        if known is None:
            self._planned.add(row.path, row.level, prepared, registry.base_manifest(base_of(row.path)))
            return Outcome(
                line=row.line,
                path=row.path,
                status="ready",
                found=pin.found,
                why=pin.why,
                warnings=() if pin.other_base is None else (pin.other_base,),
                other_base=pin.other_base is not None,
            )
        return Outcome(
            line=row.line,
            path=row.path,
            status="already",
            ref=f"{known.path}@{known.number}",
            digest=known.digest,
            found=known.pin.found,
        )


_STATUSES: tuple[Status, ...] = ("published", "already", "ready", "refused")

_PUBLISHED: dict[bool, Status] = {True: "published", False: "already"}


def read_rows(file: Path) -> list[Row]:
    """Read and check every line; a relative folder is relative to the file. Raises Invalid, naming all bad lines."""
    rows, problems = [], []
    lines = _read_csv(file) if file.suffix.lower() == ".csv" else _read_json_lines(file)
    for line, fields in lines:
        try:
            if isinstance(fields, str):
                raise Invalid(fields)
            rows.append(_parse_row(line, fields, file.parent))
        except LoratreeError as error:
            problems.append(f"line {line}: {error}")
    if problems:
        raise Invalid(
            f"{file} has lines that cannot be published, so nothing was: {listed(problems)}", details=problems
        )
    if not rows:
        raise Invalid(f"{file} names no adapter: {_REMEDY}")
    return rows


def to_line(fields: dict[str, str]) -> str:
    """Return the line of a manifest with these fields. Raises Invalid if `read_rows` would refuse it."""
    text = json.dumps(fields, ensure_ascii=False)
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise Invalid(
            f"{fields['directory']!a} has a name that is not UTF-8, which no line can hold: rename it"
        ) from error
    if size >= MAX_LINE:
        raise Invalid(f"the line of {fields['path']} would have more than {MAX_LINE} bytes: give a shorter --note")
    _parse_row(1, fields, Path())
    return text


def _read_json_lines(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield each line's number, with its fields or a sentence that says what is wrong with it."""
    with open_plain(file, remedy=_REMEDY) as stream:
        line = 0
        while text := stream.readline(MAX_LINE + 1):
            line += 1
            text = text.removeprefix(codecs.BOM_UTF8 if line == 1 else b"")
            if len(text) > MAX_LINE:
                raise Invalid(f"{file} has in line {line} more than {MAX_LINE} bytes: {_REMEDY}")
            if text.strip():
                yield line, _parse_line(text)


def _parse_line(text: bytes) -> Any:
    try:
        document = parse_json(text)
    except ValueError as error:
        return f"not JSON ({error})"
    return document if isinstance(document, dict) else "expected an object of its own, with a directory and a path"


def _read_csv(file: Path) -> Iterator[tuple[int, Any]]:
    open_plain(file, remedy=_REMEDY).close()
    line = 0
    with file.open(encoding="utf-8-sig", newline="") as stream:
        try:
            reader = csv.DictReader(stream, strict=True, skipinitialspace=True, delimiter=_choose_delimiter(stream))
            for fields in reader:
                line, filled = (
                    reader.line_num,
                    {name: value for name, value in fields.items() if value not in ("", None)},
                )
                yield line, "it has more columns than the first line" if None in filled else filled
        except (csv.Error, UnicodeDecodeError) as error:
            raise Invalid(f"{file} cannot be read after line {line} ({error}): {_REMEDY}") from error


def _choose_delimiter(stream: IO[str]) -> str:
    """Return what parts the names in the first line: spreadsheets write semicolons or tabs too."""
    first = stream.read(MAX_LINE).partition("\n")[0]
    stream.seek(0)
    return max(",;\t", key=first.count)


def _parse_row(line: int, fields: dict[Any, Any], folder: Path) -> Row:
    if unknown := [ascii(name) for name in fields if name not in FIELDS]:
        raise Invalid(
            f"{listed(unknown, limit=5)} {'is' if len(unknown) == 1 else 'are'} not known, expected {', '.join(FIELDS)}"
        )
    if missing := [name for name in FIELDS[:2] if not fields.get(name)]:
        raise Invalid(f"it has no {' and no '.join(missing)}")
    if wrong := [name for name, value in fields.items() if not (value is None or isinstance(value, str))]:
        raise Invalid(f"its {listed(wrong)} is not a text")
    if "/" not in parse_path(fields["path"]):
        only = fields["path"]
        raise Invalid(f"path {only!r} names a base alone, which has no versions: write {only}/DOMAIN, or BASE/{only}")
    if fields.get("parent") not in (None, "base"):
        parse_ref(fields["parent"])
    if fields.get("level") not in (None, *LEVELS[1:]):
        raise Invalid(f"level {fields['level'][:80]!r} is not known: expected one of {', '.join(get_args(Level)[1:])}")
    return Row(
        line=line,
        directory=folder / fields["directory"],
        path=fields["path"],
        parent=fields.get("parent"),
        level=fields.get("level"),
        note=check_text("note", fields.get("note"), limit=2000),
    )
