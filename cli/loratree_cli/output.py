"""Output of commands: JSON for programs, and sentences and progress for people. The folder screens has the rest."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import click

from loratree_cli.screens.tables import print_table as print_table
from loratree_cli.speech import SPEECH
from loratree_registry.core.records import Mark, Page, Version
from loratree_registry.core.registry import read_pages
from loratree_registry.core.text import one_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
strict_option = click.option("--strict", is_flag=True, help="Fail if a version of the chain is withdrawn.")
limit_option = click.option("--limit", type=click.IntRange(min=1), help="Stop after this many rows.")


def print_json(value: "DataclassInstance | Sequence[DataclassInstance] | dict[str, Any]") -> None:
    """Print a record, or a list of records, as indented JSON: the same bytes from either kind of registry."""
    text = json.dumps(_to_plain(value), indent=2, ensure_ascii=False)
    # JSON allows more characters in a string than a terminal should get.
    click.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


def echo(line: str, *, err: bool = False) -> None:
    """Print one line, with its tabs. What a server says may hold other characters that move the cursor: spaces now.

    With --quiet, nothing is printed to stderr. While a bar is shown, a line for the terminal is printed above it.
    """
    if not (err and SPEECH.quiet):
        _print(line, err=err)


def complain(sentence: str) -> None:
    """Print the sentence of an error to stderr, also with --quiet."""
    _print(sentence, err=True)


def _print(line: str, *, err: bool) -> None:
    line = "\t".join(map(one_line, line.split("\t")))
    if SPEECH.above is not None and (sys.stderr if err else sys.stdout).isatty():
        SPEECH.above(line)
    else:
        click.echo(line, err=err)


def say(sentence: str) -> None:
    """Print a sentence for people to stderr, so that stdout holds the result only."""
    echo(sentence, err=True)


def say_refused(sentence: str, details: Sequence[str]) -> None:
    """Print why something was refused. --verbose prints each detail on a line of its own; else a hint counts them."""
    is_verbose = SPEECH.verbose
    more = len(details) > 1 and not is_verbose  # the sentence itself names a single one
    complain(f"{sentence} (--verbose lists all {len(details)} problems)" if more else sentence)
    for detail in details if is_verbose else ():
        complain(f"  {detail}")


def every(listing: Callable[[str | None], Page[T]], limit: int | None = None) -> Iterator[T]:
    """Iterate over the items of every page, at most `limit`; `listing` takes the last key of the previous page."""
    return islice(read_pages(listing), limit)


def _to_plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def bytes_text(size: int) -> str:
    """Format a size for people: 812 B, 1.4 KB, 35.2 MB (powers of 1000)."""
    amount = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def time_text(rfc3339: str) -> str:
    """Format a time for people, to the second and in UTC: 2026-11-30T12:00:00Z."""
    return rfc3339[:19] + "Z"


def counted(count: int, noun: str) -> str:
    """Format a count for people: 1 version, 2 versions."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def short(digest: str) -> str:
    """Return the first twelve digits of a digest, for people."""
    return digest.removeprefix("sha256:")[:12]


def numbers(values: Sequence[float]) -> str:
    """Format distinct values for people: `16`, or `16, 8`."""
    return ", ".join(f"{value:g}" for value in values)


def marks_text(withdrawn: Mark | None, quarantined: Mark | None) -> list[str]:
    """List the marks of a version with their reasons: `withdrawn: it diverges`."""
    marks = (("quarantined", quarantined), ("withdrawn", withdrawn))
    return [f"{what}: {mark.reason}" for what, mark in marks if mark is not None]


def pin_text(version: Version) -> str:
    """Format a version's pin as PATH@NUMBER, or as the base's name."""
    pin = version.pin
    return version.base if pin.path is None else f"{pin.path}@{pin.version}"
