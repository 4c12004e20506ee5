from pathlib import Path

from rich.console import Console
from rich.table import Table

from loratree_cli.demo.agreement import Agreement
from loratree_cli.demo.ladder import Ladder
from loratree_cli.demo.measure import Sizes
from loratree_cli.demo.recipe import RUNGS
from loratree_cli.demo.report import bytes_sentence, bytes_table, forms_table, ladder_table, save_picture

ROWS = tuple(rung.row for rung in RUNGS)
COLUMNS = tuple(rung.name for rung in RUNGS)
LADDER = Ladder(ROWS, COLUMNS, tuple(tuple((1.0 + row, 3.0 + column) for column in range(5)) for row in range(5)))


def lines(table: Table) -> list[list[str]]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines()]


def test_the_ladder_fits_a_terminal_of_80_columns_with_means_and_their_errors() -> None:
    shown = lines(ladder_table(LADDER))
    assert shown[1] == ["base", "2.000±1.000", "2.500±1.500", "3.000±2.000", "3.500±2.500", "4.000±3.000"]
    assert [row[0] for row in shown[1:]] == list(ROWS)


def test_every_pair_of_forms_is_shown_and_the_bare_base_for_comparison() -> None:
    shown = lines(forms_table(Agreement((("merged", "stacked", 3.14e-6),), 0.5)))
    assert shown[1:] == [
        ["merged,", "stacked", "3.1e-06"],
        ["for", "comparison:", "merged,", "the", "bare", "base", "5.0e-01"],
    ]


def test_each_levels_bytes_are_shown_against_a_full_checkpoint() -> None:
    sizes = Sizes(1000, (200, 100, 50, 25))
    assert [row[-2:] for row in lines(bytes_table(sizes))[1:]] == [
        ["100.0", "%"],
        ["20.0", "%"],
        ["10.0", "%"],
        ["5.0", "%"],
        ["2.5", "%"],
    ]
    assert bytes_sentence(sizes).startswith("the tree takes 1.4 KB, 5 full checkpoints 5.0 KB")


def test_the_same_ladder_gives_the_same_picture(tmp_path: Path) -> None:
    for name in ("one.png", "two.png"):
        save_picture(LADDER, tmp_path / name)
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
