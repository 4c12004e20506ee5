"""Tables, fields and text at any width: whole words, the least important columns first."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from loratree_cli.screens.fields import draw_fields
from loratree_cli.screens.states import State
from loratree_cli.screens.tables import ALWAYS, Column, draw_table
from loratree_cli.screens.terminal import shorten, wrap, write_words
from loratree_registry.core.records import Mark

DIGEST = "sha256:" + "0123456789abcdef" * 4
WITHDRAWN = Mark(reason="diverges on prompts that are longer than 4,000 tokens", at="2026-01-31T09:30:00Z")
QUARANTINED = Mark(reason="trained on names", at="2026-01-31T09:30:00Z")
COLUMNS = (
    Column("path", kind="path"),
    Column("level", 3),
    Column("size", 2, "number"),
    Column("note", 1, "text"),
    Column("state"),
)
segments = st.text("abcdefghij-.", min_size=1, max_size=40)
paths = st.lists(segments, min_size=1, max_size=6).map("/".join)
sentences = st.lists(st.text("abcdefghij学習", min_size=1, max_size=12), max_size=12).map(" ".join)
states = st.builds(State, stale=st.booleans(), withdrawn=st.sampled_from((None, WITHDRAWN)))
rows = st.lists(st.tuples(paths, st.sampled_from(("domain", "user")), st.integers(0, 10**9), sentences, states))


def console(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)


def drawn(width: int, columns: tuple[Column, ...], rows: list[tuple[object, ...]]) -> list[str]:
    """The lines of a table, without bold and dim."""
    screen = console(width)
    draw_table(screen, columns, rows)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue().splitlines()


@given(rows, st.integers(60, 220))
def test_a_table_fits_breaks_no_word_and_keeps_the_path_and_the_state(
    rows: list[tuple[str, str, int, str, State]], width: int
) -> None:
    lines = drawn(width, COLUMNS, list(rows))
    known = {word.strip(",:") for row in rows for cell in row for word in str(cell).split()}
    notice = next((place for place, line in enumerate(lines) if line.startswith("left out: ")), len(lines))
    for line in lines[1:notice]:
        assert cell_len(line) <= width or line in [row[0] for row in rows]
        assert {word.strip(",:") for word in line.split()} <= known | {"…"}
    for path, _, _, _, state in rows:
        assert any(line.split() and line.split()[0] == path for line in lines[1:notice])
        assert any(state.words() in line.replace(f": {WITHDRAWN.reason}", "") for line in lines[1:notice])


@given(rows, st.integers(60, 220))
def test_no_column_is_left_out_before_a_less_important_one(
    rows: list[tuple[str, str, int, str, State]], width: int
) -> None:
    head, *lines = drawn(width, COLUMNS, list(rows))
    shown = {column.name: column.name in head.split() for column in COLUMNS}
    in_order = [shown[column.name] for column in sorted(COLUMNS, key=lambda column: column.importance)]
    assert in_order == sorted(in_order)
    assert any(line.startswith("left out: ") for line in lines) == (not all(in_order))


def test_a_path_that_leaves_no_room_has_a_line_of_its_own_and_the_others_stay_in_columns() -> None:
    long = "tiny/" + "/".join(["deep" * 5] * 3)
    table = drawn(
        60,
        (COLUMNS[0], Column("level", 3), Column("state")),
        [("tiny/a", "task", State(stale=True)), (long, "user", State())],
    )
    assert table == [
        "path    level  state",
        "tiny/a  task   stale",
        long,
        "        user   current",
    ]
    assert drawn(30, COLUMNS[:1], [(long,)])[1:] == [long]


def test_the_columns_that_are_left_out_are_named() -> None:
    row = ("tiny/medicine/cardiology/diagnosis/alice@1", "subdomain", 123_456_789, "a note", State())
    text = " ".join(" ".join(drawn(60, COLUMNS, [row])[2:]).split())
    assert text == "left out: level, size, note; a wider terminal or --json shows them"
    assert drawn(200, COLUMNS, [row])[2:] == []


def test_columns_that_are_names_alone_keep_the_first_and_leave_out_the_last() -> None:
    columns = tuple(Column(name, -place if place else ALWAYS) for place, name in enumerate("abc"))
    assert drawn(25, columns, [("x" * 10, "y" * 10, "z" * 10)])[0].split() == ["a", "b"]


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (100, "stale, withdrawn: diverges on prompts that are longer than 4,000 tokens"),
        (40, "stale, withdrawn: diverges on prompts …"),
        (30, "stale, withdrawn: diverges …"),
        (22, "stale, withdrawn"),
        (5, "stale, withdrawn"),
    ],
)
def test_a_state_keeps_its_words_and_as_much_of_its_reason_as_fits(width: int, text: str) -> None:
    assert State(stale=True, withdrawn=WITHDRAWN).fit(width) == text


def test_states_have_a_word_for_each_mark_and_the_colour_of_the_gravest() -> None:
    both = State(stale=True, withdrawn=WITHDRAWN, quarantined=QUARANTINED, follow="pin")
    assert str(both) == f"stale, quarantined: trained on names, withdrawn: {WITHDRAWN.reason}, by pin"
    assert (both.words(), both.fit(60), both.style) == (
        "stale, quarantined, withdrawn, by pin",
        "stale, quarantined, withdrawn, by pin",
        "bold red",
    )
    assert (str(State()), State().style, str(State(sound=""))) == ("current", "green", "")
    assert (State(stale=True).style, State(withdrawn=WITHDRAWN).style) == ("yellow", "red")


def test_fields_have_a_digest_on_a_line_of_its_own_if_it_does_not_fit() -> None:
    screen = console(80)
    draw_fields(screen, [("digest", DIGEST), ("base", f"tiny {DIGEST}"), ("note", "one two"), ("empty", None)])
    assert isinstance(screen.file, io.StringIO)
    lines = [line.replace("\x1b[1m", "").replace("\x1b[0m", "") for line in screen.file.getvalue().splitlines()]
    assert lines == ["digest", f"  {DIGEST}", "base          tiny", f"  {DIGEST}", "note          one two"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_fields_wrap_between_words(width: int) -> None:
    screen = console(width)
    draw_fields(screen, [("note", "学習した重み " * 30), ("adapter_model.safetensors", f"35.2 MB {DIGEST}")])
    assert isinstance(screen.file, io.StringIO)
    for line in screen.file.getvalue().splitlines():
        assert cell_len(line) <= width + len("\x1b[1m\x1b[0m") or line.strip() == DIGEST
    assert DIGEST in screen.file.getvalue()


def test_what_a_registry_says_moves_no_cursor_and_is_no_markup() -> None:
    hostile = "\x1b]0;owned\x07\x9b2J\u202e\n[red]x[/red]"
    screen = console(80)
    mark = Mark(reason=hostile, at="")
    draw_table(screen, COLUMNS, [(hostile, hostile, hostile, hostile, State(withdrawn=mark))])
    draw_fields(screen, [(hostile, hostile), ("state", State(quarantined=mark))])
    write_words(screen, f"the base {hostile}", "bold")
    assert isinstance(screen.file, io.StringIO)
    written = screen.file.getvalue()
    assert all(character.isprintable() or character == "\n" for character in written)
    assert written.count("[red]x[/red]") >= 5


@given(sentences, st.integers(4, 60))
def test_text_is_cut_and_wrapped_between_words(text: str, width: int) -> None:
    cut = shorten(text, width)
    assert cell_len(cut) <= width
    assert cut == text or text.startswith(cut.removesuffix("…").rstrip())
    lines = [line.plain for line in wrap(text, width)]
    assert " ".join(lines).split() == text.split()
    assert all(cell_len(line) <= width or " " not in line for line in lines)
