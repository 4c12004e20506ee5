"""Tables: lines with tabs in a pipe; at a terminal, as many columns as fit, the least important left out first."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Final, Literal

import click

from loratree_cli.screens.states import State
from loratree_cli.screens.terminal import FAINT, shorten, terminal, wrap, write_line, write_words
from loratree_registry.core.text import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

ALWAYS: Final = 1000  # the importance of a column that is never left out
_GAP: Final = 2
_READABLE: Final = 22  # cells of free text, below which less important columns make room

Row = Sequence[object]


@dataclass(frozen=True, slots=True)
class Column:
    """A column. Where the terminal is too narrow, the column of the least importance is left out first.

    A `word` is shown whole. A `path` too, on a line of its own if it leaves no room for the other columns. A `number`
    is at the right of its column. A `text` is cut between words, and a State keeps all of its words. `words`, in the
    last column only, go on below themselves. The column with what a row is there for is never left out.
    """

    name: str
    importance: int = ALWAYS
    kind: Literal["word", "path", "number", "text", "words"] = "word"


def print_table(columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Print rows under their columns; in a pipe, each row as it comes."""
    console = terminal()
    if console is not None:
        draw_table(console, columns, list(rows))
        return
    cells = iter(rows)
    first = list(islice(cells, 1))  # a list that is refused prints nothing
    click.echo("\t".join(column.name for column in columns))
    for row in chain(first, cells):
        click.echo("\t".join(map(_to_text, row)))


def draw_table(console: "Console", columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Draw a table that fits the terminal, and say which columns it leaves out."""
    from rich.text import Text

    layout = _Layout(columns, rows, console.width)
    write_line(console, layout.join([Text(columns[place].name, style="bold") for place in layout.shown]))
    for row in rows:
        cells = [layout.cell(place, row[place]) for place in layout.shown]
        for line in layout.lines(cells):
            write_line(console, line)
    left_out = [column.name for place, column in enumerate(columns) if place not in layout.shown]
    if left_out:
        them = "it" if len(left_out) == 1 else "them"
        write_words(console, f"left out: {', '.join(left_out)}; a wider terminal or --json shows {them}", FAINT)


class _Layout:
    """Which columns are shown, and how wide each is, in cells."""

    def __init__(self, columns: Sequence[Column], rows: Sequence[Row], width: int) -> None:
        from rich.cells import cell_len

        self.columns = columns
        whole, least = list[int](), list[int]()
        for place, column in enumerate(columns):
            cells = [row[place] for row in rows]
            name = cell_len(column.name)
            whole.append(max([name, *(cell_len(_to_text(cell)) for cell in cells)]))
            least.append(max([name, *(_least(column, cell) for cell in cells)]))
        always = [place for place, column in enumerate(columns) if column.importance == ALWAYS]
        self.path = next((place for place, column in enumerate(columns) if column.kind == "path"), None)
        if (path := self.path) is not None:  # a path that leaves no room for the rest has a line of its own
            room = width - sum(least[place] + _GAP for place in always if place != path)
            fitting = [size for row in rows if (size := cell_len(_to_text(row[path]))) <= room]
            whole[path] = least[path] = max([min(room, cell_len(columns[path].name)), *fitting])
        wished = [min(full, max(low, _READABLE)) for full, low in zip(whole, least, strict=True)]
        self.shown = list(range(len(columns)))
        while _total(wished, self.shown) > width and (others := [p for p in self.shown if p not in always]):
            self.shown.remove(min(others, key=lambda place: columns[place].importance))
        spare = width - _total(wished, self.shown)
        self.widths = dict.fromkeys(range(len(columns)), 0)
        for place in self.shown:
            self.widths[place] = min(whole[place], max(least[place], wished[place] + spare))
            spare -= self.widths[place] - wished[place]
        self.path = self.shown.index(self.path) if self.path in self.shown else None  # a place among those shown
        self.width = width

    def cell(self, place: int, value: object) -> "Text":
        """Return a cell as it is shown in the column at `place`."""
        from rich.text import Text

        if isinstance(value, State):
            return Text(value.fit(self.widths[place]), style=value.style)
        text = _to_text(value)
        # Text, because rich would read a bracket in a note or a source as markup.
        return Text(shorten(text, self.widths[place]) if self.columns[place].kind == "text" else text)

    def lines(self, cells: "list[Text]") -> "Iterator[Text]":
        """Yield the lines of a row: one; more if its path is too wide, or if the words in its last column go on."""
        from rich.cells import cell_len
        from rich.text import Text

        path = self.path
        if path is not None and cell_len(cells[path].plain) > self.widths[self.shown[path]]:
            head = self.join(cells[: path + 1])
            fits = cell_len(head.plain.rstrip()) <= self.width
            yield head if fits else cells[path]
            cells = [Text() if place == path or (fits and place < path) else cell for place, cell in enumerate(cells)]
        if not any(cell.plain for cell in cells):
            return
        if self.columns[self.shown[-1]].kind == "words":
            yield from self._words(cells)
        else:
            yield self.join(cells)

    def _words(self, cells: "list[Text]") -> "Iterator[Text]":
        """Yield the lines of a row whose last cell goes on below itself; a wider word has less space before it."""
        from rich.cells import cell_len
        from rich.text import Text

        start = sum(self.widths[place] + _GAP for place in self.shown[:-1])
        before = self.join(cells[:-1])
        for line in wrap(cells[-1].plain, self.widths[self.shown[-1]]):
            spare = self.width - cell_len(line.plain)
            if before.plain.strip() and spare < start:
                yield before
                before = Text()
            yield Text.assemble(before if before.plain.strip() else " " * min(start, max(0, spare)), line)
            before = Text()

    def join(self, cells: "list[Text]") -> "Text":
        """Return the cells of the first columns that are shown as one line."""
        from rich.cells import cell_len
        from rich.text import Text

        line = Text()
        for place, cell in zip(self.shown, cells, strict=False):
            padding = " " * (self.widths[place] - cell_len(cell.plain))
            is_number = self.columns[place].kind == "number"
            line.append_text(Text.assemble(padding, cell, " " * _GAP) if is_number else cell)
            if not is_number:
                line.append(padding + " " * _GAP)
        return line


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[place] for place in shown) + _GAP * (len(shown) - 1)


def _least(column: Column, cell: object) -> int:
    """Return the cells that a value takes at least."""
    from rich.cells import cell_len

    if isinstance(cell, State):
        return cell_len(cell.words())
    size = cell_len(_to_text(cell))
    return {"text": 1, "words": min(size, _READABLE)}.get(column.kind, size)


def _to_text(value: object) -> str:
    return "" if value is None else one_line(str(value))
