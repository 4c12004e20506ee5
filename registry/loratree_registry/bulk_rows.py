"""The manifest of a bulk publish: a line for each adapter, as JSON or CSV."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from loratree_registry.errors import Invalid, LoratreeError, listed
from loratree_registry.paths import LEVELS, Level, ancestors_of, parse_path, parse_ref, versionless
from loratree_registry.plain_file import open_plain
from loratree_registry.strict_json import parse_json
from loratree_registry.text import check_text

FIELDS: Final = ("directory", "path", "parent", "level", "note")
MAX_LINE: Final = 64 * 1024
_REMEDY: Final = "give a file of JSON lines, or of comma-separated values that begins with their names"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One adapter to publish: its folder, its path, and what `loratree publish` may be told of it."""

    line: int
    directory: Path
    path: str
    parent: str | None
    level: Level | None
    note: str | None

    @property
    def depth(self) -> int:
        """How many nodes are above it."""
        return len(ancestors_of(self.path))


def read_rows(file: Path) -> list[Row]:
    """Reads and checks every line; a relative folder is relative to the file. Raises Invalid, naming all bad lines."""
    rows, problems = [], []
    lines = _csv(file) if file.suffix.lower() == ".csv" else _json(file)
    for line, fields in lines:
        try:
            if isinstance(fields, str):
                raise Invalid(fields)
            rows.append(_row(line, fields, file.parent))
        except LoratreeError as error:
            problems.append(f"line {line}: {error}")
    if problems:
        raise Invalid(f"{file} has lines that cannot be published, so nothing was: {listed(problems)}")
    if not rows:
        raise Invalid(f"{file} names no adapter: {_REMEDY}")
    return rows


def _json(file: Path) -> Iterator[tuple[int, Any]]:
    """Each line's number, and what it says or what is wrong with it."""
    with open_plain(file, remedy=_REMEDY) as stream:
        line = 0
        while text := stream.readline(MAX_LINE + 1):
            line += 1
            if len(text) > MAX_LINE:
                raise Invalid(f"{file} has in line {line} more than {MAX_LINE} bytes: {_REMEDY}")
            if text.strip():
                yield line, _parsed(text)


def _parsed(text: bytes) -> Any:
    try:
        document = parse_json(text)
    except ValueError as error:
        return f"not JSON ({error})"
    return document if isinstance(document, dict) else "expected an object with a directory and a path"


def _csv(file: Path) -> Iterator[tuple[int, Any]]:
    open_plain(file, remedy=_REMEDY).close()
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            for fields in reader:
                given = {name: value for name, value in fields.items() if value not in ("", None)}
                yield reader.line_num, "it has more columns than the first line" if None in given else given
        except (csv.Error, UnicodeDecodeError) as error:
            raise Invalid(f"{file} cannot be read after line {reader.line_num} ({error}): {_REMEDY}") from error


def _row(line: int, fields: dict[Any, Any], folder: Path) -> Row:
    if unknown := [ascii(name) for name in fields if name not in FIELDS]:
        raise Invalid(f"{listed(unknown, limit=5)} is not known, expected {', '.join(FIELDS)}")
    if missing := [name for name in FIELDS[:2] if not fields.get(name)]:
        raise Invalid(f"it has no {' and no '.join(missing)}")
    if wrong := [name for name, value in fields.items() if not (value is None or isinstance(value, str))]:
        raise Invalid(f"its {listed(wrong)} is not a text")
    if "/" not in parse_path(fields["path"]):
        raise Invalid(versionless(fields["path"]))
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
