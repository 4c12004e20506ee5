"""The demo's tables, its verdicts and its picture."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from loratree_cli.demo.agreement import Agreement
from loratree_cli.demo.ladder import Ladder, Mean
from loratree_cli.demo.measure import Sizes
from loratree_cli.demo.recipe import RUNGS
from loratree_cli.output import bytes_text


def ladder_table(ladder: Ladder) -> Table:
    """Make the table of losses with their standard errors, each level's own text in bold."""
    table = _new_table("model", *(f"{column} text" for column in ladder.columns))
    for row, name in enumerate(ladder.rows):
        cells = [_cell_text(ladder.cell(row, column), own=row == column) for column in range(len(ladder.columns))]
        table.add_row(name, *cells)
    return table


def forms_table(agreement: Agreement) -> Table:
    """Make the table of the largest difference of each pair of forms."""
    table = _new_table("two forms", "difference")
    for one, other, difference in agreement.pairs:
        table.add_row(f"{one}, {other}", f"{difference:.1e}")
    table.add_row("for comparison: merged, the bare base", f"{agreement.bare:.1e}")
    return table


def bytes_table(sizes: Sizes) -> Table:
    """Make the table of the bytes that each level stores, compared with a full checkpoint."""
    table = _new_table("level", "rank", "bytes", "of a full checkpoint")
    table.add_row(RUNGS[0].path, "", bytes_text(sizes.checkpoint), "100.0 %")
    for rung, size in zip(RUNGS[1:], sizes.adapters, strict=True):
        table.add_row(rung.path, str(rung.rank), bytes_text(size), f"{100 * size / sizes.checkpoint:.1f} %")
    return table


def bytes_sentence(sizes: Sizes) -> str:
    """Compare the bytes of the tree with one full checkpoint per level."""
    levels = 1 + len(sizes.adapters)
    tree, full = sizes.checkpoint + sum(sizes.adapters), sizes.checkpoint * levels
    return (
        f"the tree takes {bytes_text(tree)}, {levels} full checkpoints {bytes_text(full)} (the wider the base, "
        "the smaller an adapter's share)"
    )


def save_picture(ladder: Ladder, path: Path) -> None:
    """Draw the ladder as a PNG: one line per held-out text, down the rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(ladder.rows))
    for column, name in enumerate(ladder.columns):
        cells = [ladder.cell(row, column) for row in places]
        values, errors = [cell.value for cell in cells], [3 * cell.error for cell in cells]
        (line, *_) = axes.errorbar(places, values, errors, marker="o", capsize=3, label=f"{name} text")
        axes.plot(column, values[column], marker="o", markersize=13, fillstyle="none", color=line.get_color())
    axes.set_xticks(places, ladder.rows)
    axes.set_ylabel("held-out loss, nats a byte (bars: 3 standard errors)")
    axes.set_title("What each level adds (circled: a level on its own text)")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=144, format="png", metadata={"Software": None})


def show(title: str, table: Table, *sentences: str) -> None:
    """Print a title, a table and its conclusions in plain words."""
    console = Console()
    console.print(f"\n[bold]{title}[/]")
    console.print(table)
    for sentence in sentences:
        click.echo(sentence)


def _new_table(first: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _cell_text(cell: Mean, *, own: bool) -> str:
    text = f"{cell.value:.3f}±{cell.error:.3f}"
    return f"[bold]{text}[/]" if own else text
