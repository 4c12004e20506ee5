"""Output of commands: JSON for programs, and sentences and progress for people. The folder screens has the rest."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from loratree_cli.screens.terminal import say_words
from loratree_cli.speech import SPEECH
from loratree_registry.core.records import Page, Pin
from loratree_registry.core.registry import read_pages
from loratree_registry.core.text import counted as counted
from loratree_registry.core.text import one_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
strict_option = click.option("--strict", is_flag=True, help="Fail if a version of the chain is withdrawn.")
limit_option = click.option("--limit", type=click.IntRange(min=1), help="Stop after this many rows.")


def print_json(value: "DataclassInstance | Sequence[DataclassInstance] | dict[str, Any]") -> None:
    """Print a record, or a list of records, as indented JSON: the same bytes from either kind of registry."""
    click.echo(_json_text(value))


def print_json_list(records: "Iterable[DataclassInstance]") -> None:
    """Print records as `print_json` prints a list of them, each as it comes: a list may be larger than memory."""
    before = "[\n  "
    for record in records:
        click.echo(before + _json_text(record).replace("\n", "\n  "), nl=False)
        before = ",\n  "
    click.echo("[]" if before.startswith("[") else "\n]")


def _json_text(value: Any) -> str:
    text = json.dumps(_to_plain(value), indent=2, ensure_ascii=False)
    # JSON allows more characters in a string than a terminal should get.
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


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
    with SPEECH.lock:
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


def every(listing: Callable[[str | None], Page[T]]) -> Iterator[T]:
    """Iterate over the items of every page; `listing` takes the last key of the previous page."""
    return read_pages(listing)


@dataclasses.dataclass
class First(Generic[T]):
    """The first `limit` items, or all; after them, `has_more` says whether there are others."""

    items: Iterator[T]
    limit: int | None
    has_more: bool = False

    def __iter__(self) -> Iterator[T]:
        for place, item in enumerate(self.items):
            if place == self.limit:
                self.has_more = True
                return
            yield item

    def say_more(self) -> None:
        """Say on stderr that there are more items, if there are: a list that ends early looks like a whole one."""
        if self.has_more:
            these = "this is the first" if self.limit == 1 else f"these are the first {self.limit}"
            say_words(f"… and more: {these}; a larger --limit prints more")


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


def short(digest: str) -> str:
    """Return the first twelve digits of a digest, for people."""
    return digest.removeprefix("sha256:")[:12]


def numbers(values: Sequence[float]) -> str:
    """Format distinct values for people: `16`, or `16, 8`."""
    return ", ".join(f"{value:g}" for value in values)


def pin_text(pin: Pin, base: str) -> str:
    """Format a pin as PATH@NUMBER, or as the base's name."""
    return base if pin.path is None else f"{pin.path}@{pin.version}"
