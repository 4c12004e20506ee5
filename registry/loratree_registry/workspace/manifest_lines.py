"""The lines of a manifest, JSON or comma-separated values: one adapter each, for `publish_rows`."""

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, get_args

from loratree_registry.core.paths import LEVELS, Level, ancestors_of, parse_path, parse_ref
from loratree_registry.core.strict_json import parse_json
from loratree_registry.core.text import check_text
from loratree_registry.disk.plain_files import open_plain
from loratree_registry.errors import Invalid, LoratreeError, listed

FIELDS: Final = ("directory", "path", "parent", "level", "note")
MAX_LINE: Final = 64 * 1024
_REMEDY: Final = "give a file of JSON lines, or a .csv whose first line is the names: directory,path"


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
