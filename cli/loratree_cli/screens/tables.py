"""Tables: lines with tabs in a pipe; at a terminal, as many columns as fit, the least important left out first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import click

from loratree_cli.screens.states import State
from loratree_cli.screens.terminal import FAINT, shorten, terminal, write_line, write_words
from loratree_registry.core.text import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

ALWAYS: Final = 1000  # the importance of a column that is never left out
_GAP: Final = 2
_READABLE: Final = 24  # cells of free text, below which less important columns make room

Row = Sequence[object]


@dataclass(frozen=True, slots=True)
class Column:
    """A column. Where the terminal is too narrow, the column of the least importance is left out first.

    A `word` is shown whole. A `path` too, on a line of its own if it leaves no room for the other columns. A `number`
    is at the right of its column. A `text` is cut between words, and a State keeps all of its words.
    """

    name: str
    importance: int = ALWAYS
    kind: Literal["word", "path", "number", "text"] = "word"


def print_table(columns: Sequence[Column | str], rows: Iterable[Row]) -> None:
    """Print rows under their columns. Of columns that are names alone, the first stays, and the last goes first."""
    described = [
        column
        if isinstance(column, Column)
        else Column(column, -place if place else ALWAYS, "word" if place else "path")
        for place, column in enumerate(columns)
    ]
    console = terminal()
    if console is not None:
        draw_table(console, described, list(rows))
        return
    click.echo("\t".join(column.name for column in described))
    for row in rows:
        click.echo("\t".join(map(_to_text, row)))


def draw_table(console: "Console", columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Draw a table that fits the terminal, and say which columns it leaves out."""
    from rich.cells import cell_len
    from rich.text import Text

    layout = _Layout(columns, rows, console.width)
    write_line(console, layout.join([Text(columns[place].name, style="bold") for place in layout.shown]))
    for row in rows:
        cells = [layout.cell(place, row[place]) for place in layout.shown]
        if columns[layout.shown[0]].kind == "path" and cell_len(cells[0].plain) > layout.widths[layout.shown[0]]:
            write_line(console, cells[0])
            cells[0] = Text()
        if any(cell.plain for cell in cells):
            write_line(console, layout.join(cells))
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
        if columns[0].kind == "path":  # a path that leaves no room for the rest has a line of its own
            room = width - sum(least[place] + _GAP for place in always[1:])
            fitting = [size for row in rows if (size := cell_len(_to_text(row[0]))) <= room]
            whole[0] = least[0] = max([min(room, cell_len(columns[0].name)), *fitting])
        wished = [min(full, max(low, _READABLE)) for full, low in zip(whole, least, strict=True)]
        self.shown = list(range(len(columns)))
        while _total(wished, self.shown) > width and (others := [p for p in self.shown if p not in always]):
            self.shown.remove(min(others, key=lambda place: columns[place].importance))
        spare = width - _total(wished, self.shown)
        self.widths = dict.fromkeys(range(len(columns)), 0)
        for place in self.shown:
            self.widths[place] = min(whole[place], max(least[place], wished[place] + spare))
            spare -= self.widths[place] - wished[place]

    def cell(self, place: int, value: object) -> "Text":
        """Return a cell as it is shown in the column at `place`."""
        from rich.text import Text

        if isinstance(value, State):
            return Text(value.fit(self.widths[place]), style=value.style)
        text = _to_text(value)
        # Text, because rich would read a bracket in a note or a source as markup.
        return Text(shorten(text, self.widths[place]) if self.columns[place].kind == "text" else text)

    def join(self, cells: "list[Text]") -> "Text":
        """Return the cells of the columns that are shown as one line."""
        from rich.cells import cell_len
        from rich.text import Text

        line = Text()
        for place, cell in zip(self.shown, cells, strict=True):
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
    return 1 if column.kind == "text" else cell_len(_to_text(cell))


def _to_text(value: object) -> str:
    return "" if value is None else one_line(str(value))
