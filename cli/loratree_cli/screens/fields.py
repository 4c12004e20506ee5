"""Fields of one thing: a label and a value on each line, digests whole."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from loratree_cli.screens.states import State
from loratree_cli.screens.terminal import wrap, write_line
from loratree_registry.core.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

_LABEL: Final = 12  # cells that labels take; a longer one pushes its own value only
_GAP: Final = 2


def draw_fields(console: "Console", rows: Iterable[tuple[str, object]]) -> None:
    """Draw fields, without those that are empty. A digest that is too wide has a line of its own."""
    for label, value in rows:
        if value not in (None, ""):
            _draw_field(console, one_line(label), value)


def _draw_field(console: "Console", label: str, value: object) -> None:
    from rich.cells import cell_len
    from rich.text import Text

    indent = max(_LABEL, cell_len(label)) + _GAP
    if indent > console.width // 2:
        indent = _LABEL + _GAP
    lines = wrap(one_line(str(value)), console.width - indent)
    head = Text(label, style="bold")
    if cell_len(label) + _GAP > indent or cell_len(lines[0].plain) > console.width - indent:
        write_line(console, head)
        head = Text()
    for line in lines:
        line.stylize(value.style if isinstance(value, State) else "")
        size = cell_len(line.plain)
        fits = size <= console.width - indent
        start = indent if fits else min(_GAP, max(0, console.width - size))
        write_line(console, Text.assemble(head, " " * (start - cell_len(head.plain)), line))
        head = Text()
