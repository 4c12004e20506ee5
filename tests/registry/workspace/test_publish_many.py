"""Bulk publish: parents first, several at once, going on after what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loratree_registry.core.paths import LEVELS
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Invalid, Unavailable
from loratree_registry.workspace.manifest_lines import read_rows
from loratree_registry.workspace.publish_many import Report, publish_rows
from tests.registry.material import WEIGHTS, Adapter, Material


def saved(folder: Path, adapter: Adapter, number: int = 0, *, trained_on: str | None = None) -> str:
    """Writes an adapter that says nothing of what it was trained on, or that; and returns its folder's name."""
    name = f"adapter{number}"
    (folder / name).mkdir()
    config = {**adapter.config, "base_model_name_or_path": trained_on}
    (folder / name / "adapter_config.json").write_text(json.dumps(config))
    (folder / name / WEIGHTS).write_bytes(adapter.variant(number).weights)
    return name


def listed(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "manifest.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def rows(tmp_path: Path, material: Material) -> list[dict[str, Any]]:
    """Children before their parents, in two trees, and a second version."""
    paths = ["tiny/law/tax/vat", "tiny/law/tax", "tiny/law", "tiny/medicine/heart", "tiny/medicine", "tiny/law"]
    return [{"directory": saved(tmp_path, material.rank4, n), "path": path} for n, path in enumerate(paths)]


def test_parents_are_published_first_and_again_all_is_there_already(
    registry: Registry, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    def publish() -> Report:
        return publish_rows(registry, read_rows(listed(tmp_path, rows)), home=tmp_path)

    report = publish()
    assert (report.published, report.already, report.refused, report.left) == (6, 0, 0, 0)
    assert [outcome.ref for outcome in report.outcomes] == [
        "tiny/law/tax/vat@1",
        "tiny/law/tax@1",
        "tiny/law@1",
        "tiny/medicine/heart@1",
        "tiny/medicine@1",
        "tiny/law@2",
    ]
    pins = [edge.parent for edge in registry.lineage("tiny/law/tax/vat").edges]
    assert pins == ["tiny/law/tax@1", "tiny/law@2", None]
    again = publish()
    assert (again.published, again.already, again.refused) == (0, 6, 0)
    assert [outcome.digest for outcome in again.outcomes] == [outcome.digest for outcome in report.outcomes]


def test_a_refused_row_stops_only_what_is_below_it_until_it_is_corrected(
    registry: Registry, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    weights = tmp_path / rows[1]["directory"] / WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    file = listed(tmp_path, rows)
    report = publish_rows(registry, read_rows(file), home=tmp_path)
    assert (report.published, report.refused, report.left) == (4, 2, 0)
    refused = {outcome.line: outcome.says or "" for outcome in report.outcomes if outcome.status == "refused"}
    assert WEIGHTS in refused[2]
    assert refused[1] == "tiny/law/tax, which it is below, was refused in line 2: publish that first"
    weights.write_bytes(whole)
    report = publish_rows(registry, read_rows(file), home=tmp_path)
    assert (report.published, report.already, report.refused) == (2, 4, 0)


def test_a_dry_run_checks_every_row_and_writes_nothing(
    registry: Registry, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / rows[3]["directory"] / WEIGHTS).unlink()
    report = publish_rows(registry, read_rows(listed(tmp_path, rows)), home=tmp_path, dry_run=True)
    assert (report.ready, report.published, report.refused) == (5, 0, 1)
    assert not registry.node("tiny").has_children


def test_a_dry_run_judges_each_line_as_publishing_does_also_below_another_line(
    registry: Registry, material: Material, tmp_path: Path
) -> None:
    base = f"tiny@{registry.base('tiny').digest}"
    lines: list[tuple[str, str | None, str | None]] = [
        ("tiny/law", None, None),
        ("tiny/law/tax", base, None),  # the base, or tiny/law@1: a person must say
        ("tiny/law/tax/vat", None, None),  # below a refused line
        ("tiny/law/fees", base, "base"),
        ("tiny/law/fines", None, "tiny/law@2"),  # there is to be one version alone
        ("tiny/law/terms", None, "tiny/law@1"),
        ("tiny/law/terms/old", None, None),
        ("tiny/deep/er/down", None, None),
        ("tiny/deep/er/down/there", base, None),
        ("tiny/law/terms", None, None),  # a second version
        ("tiny/law/terms/new", base, "tiny/law/terms@2"),
    ]
    rows = [
        {"directory": saved(tmp_path, material.rank4, n, trained_on=on), "path": path} | ({"parent": of} if of else {})
        for n, (path, on, of) in enumerate(lines)
    ]

    def judge(*, dry_run: bool) -> list[tuple[int, bool, str | None, str | None]]:
        report = publish_rows(registry, read_rows(listed(tmp_path, rows)), home=tmp_path, dry_run=dry_run)
        return [(one.line, one.status == "refused", one.says, one.found) for one in report.outcomes]

    rehearsed = judge(dry_run=True)
    assert not registry.node("tiny").has_children
    told = judge(dry_run=False)
    assert (rehearsed[4][2] or "") == "tiny/law@2 will not be there: the manifest gives tiny/law version 1"
    assert (told[4][2] or "").startswith("tiny/law has no version 2")
    assert [one for one in rehearsed if one[0] != 5] == [one for one in told if one[0] != 5]
    refused = {line: says for line, is_refused, says, _ in rehearsed if is_refused}
    assert list(refused) == [2, 3, 5, 9]
    assert "so what tiny/law/tax builds on is open" in (refused[2] or "")
    assert "so what tiny/deep/er/down/there builds on is open" in (refused[9] or "")
    assert judge(dry_run=True) == judge(dry_run=False)  # what is there already, and the same refusals


def test_a_dry_run_says_the_levels_that_publishing_gives_and_refuses_those_that_do_not_fit(
    registry: Registry, material: Material, tmp_path: Path
) -> None:
    registry.create_node("tiny/there", level="task")
    lines: list[tuple[str, str | None, str | None]] = [
        ("tiny/law", "domain", "domain"),
        ("tiny/law/tax", "user", "user"),
        ("tiny/law/tax/vat", None, None),  # nothing is below a user
        ("tiny/law/tax", None, "user"),  # a second version
        ("tiny/law/tax", "task", None),  # it is a user already
        ("tiny/deep/er/down", "user", "user"),
        ("tiny/deep/er/up", "domain", None),
        ("tiny/there", "user", None),
        ("tiny/there/ann", None, "user"),
        ("tiny/a/b/c/d/e", None, "user"),  # sub-domains repeat
        ("tiny/lone", "task", "task"),
        ("tiny/lone/below/that", "domain", None),  # what is refused makes no node
    ]
    rows = [
        {"directory": saved(tmp_path, material.rank4, n), "path": path, "parent": "base"}
        | ({"level": of} if of else {})
        for n, (path, of, _) in enumerate(lines)
    ]

    def judge(*, dry_run: bool) -> Report:
        return publish_rows(registry, read_rows(listed(tmp_path, rows)), home=tmp_path, jobs=1, dry_run=dry_run)

    rehearsed = judge(dry_run=True)
    assert [node.path for node in registry.descendants("tiny").items] == ["tiny/there"]
    told = judge(dry_run=False)
    assert [one.level for one in rehearsed.outcomes] == [level for _, _, level in lines]
    assert [(one.level, one.says) for one in rehearsed.outcomes] == [(one.level, one.says) for one in told.outcomes]
    made = [node.level for node in registry.descendants("tiny").items if node.path != "tiny/there"]
    assert rehearsed.makes == {level: made.count(level) for level in LEVELS if level in made}
    again = judge(dry_run=True)
    assert (again.makes, [one.level for one in again.outcomes]) == ({}, [level for _, _, level in lines])


def test_a_dry_run_refuses_what_is_below_a_refused_row_whether_or_not_it_names_its_parent(
    registry: Registry, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / rows[1]["directory"] / WEIGHTS).unlink()
    rows[0] |= {"parent": "tiny/law/tax@1"}
    report = publish_rows(registry, read_rows(listed(tmp_path, rows)), home=tmp_path, dry_run=True)
    assert [outcome.line for outcome in report.outcomes if outcome.status == "refused"] == [1, 2]


class Refusing:
    """A registry whose every upload is cut off after some, as by Ctrl-C or a server that goes away."""

    def __init__(self, registry: Registry, after: int, error: BaseException) -> None:
        self._registry, self._left, self._error = registry, after, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def upload(self, *arguments: Any, **options: Any) -> None:
        self._left -= 1
        if self._left < 0:
            raise self._error
        self._registry.upload(*arguments, **options)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Unavailable("the server is gone")])
def test_where_it_was_stopped_it_tells_what_was_done_and_goes_on(
    registry: Registry, rows: list[dict[str, Any]], tmp_path: Path, error: BaseException
) -> None:
    file = listed(tmp_path, rows)
    cut: Any = Refusing(registry, 2, error)
    report = publish_rows(cut, read_rows(file), home=tmp_path, jobs=1)
    assert (report.published, report.left, report.stopped) == (2, 4, str(error) or "interrupted")
    report = publish_rows(registry, read_rows(file), home=tmp_path)
    assert (report.published, report.already, report.left) == (4, 2, 0)


def test_a_csv_file_says_the_same_and_relative_folders_are_beside_it(tmp_path: Path) -> None:
    rows = [
        {"directory": "one", "path": "tiny/a", "parent": "base", "note": "a, b"},
        {"directory": "/x", "path": "t/b"},
    ]
    (tmp_path / "m.csv").write_text('directory,path,parent,level,note\none,tiny/a,base,,"a, b"\n/x,t/b,,,\n')
    from_csv, from_json = read_rows(tmp_path / "m.csv"), read_rows(listed(tmp_path, rows))
    assert [row.line for row in from_csv] == [2, 3]
    assert [(row.directory, row.path, row.parent, row.level, row.note) for row in from_csv] == [
        (tmp_path / "one", "tiny/a", "base", None, "a, b"),
        (Path("/x"), "t/b", None, None, None),
    ]
    assert [(row.directory, row.path, row.note) for row in from_json] == [
        (row.directory, row.path, row.note) for row in from_csv
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"directory;path;note\r\na;t/a;one, two\r\n",
        b"\xef\xbb\xbfdirectory;path;note\r\na;t/a;one, two\r\n",
        b'\xef\xbb\xbfdirectory,path,note\r\na,t/a,"one, two"\r\n',
        b"directory\tpath\tnote\na\tt/a\tone, two\n",
        b'directory, path, note\na, t/a, "one, two"\n',
    ],
    ids=["semicolons", "semicolons with a mark", "commas with a mark", "tabs", "spaces after commas"],
)
def test_a_table_is_read_as_spreadsheets_and_people_write_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    assert [(row.directory.name, row.path, row.note) for row in read_rows(tmp_path / "m.csv")] == [
        ("a", "t/a", "one, two")
    ]


def test_a_byte_order_mark_before_json_lines_is_no_part_of_them(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_bytes(b'\xef\xbb\xbf{"directory": "a", "path": "t/a"}\n')
    assert [row.path for row in read_rows(tmp_path / "m.jsonl")] == ["t/a"]


BAD: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{\n", r"line 1: not JSON \("),
    "no object": (b"[1]\n", "line 1: expected an object of its own, with a directory and a path"),
    "a key twice": (b'{"path": "a/b", "path": "a/c", "directory": "x"}\n', "'path' stands twice"),
    "an unknown field": (b'{"path": "a/b", "directory": "x", "parents": "base"}\n', "'parents' is not known"),
    "no path": (b'{"directory": "x"}\n', "line 1: it has no path"),
    "a number": (b'{"path": "a/b", "directory": "x", "note": 7}\n', "its note is not a text"),
    "a base": (
        b'{"path": "a", "directory": "x"}\n',
        "path 'a' names a base alone, which has no versions: write a/DOMAIN, or BASE/a",
    ),
    "a bad path": (b'{"path": "a/../b", "directory": "x"}\n', r"the segment '\.\.'"),
    "a bad parent": (b'{"path": "a/b", "directory": "x", "parent": "a@@"}\n', "the selector '@'"),
    "a bad level": (b'{"path": "a/b", "directory": "x", "level": "base"}\n', "level 'base' is not known"),
    "nothing": (b"\n\n", "names no adapter"),
    "a giant line": (b'"' + b"x" * 70_000, "in line 1 more than 65536 bytes"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_manifest_is_checked_whole_before_anything_is_published(tmp_path: Path, what: str) -> None:
    content, sentence = BAD[what]
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(Invalid, match=sentence):
        read_rows(tmp_path / "m.jsonl")


def test_a_line_of_more_columns_than_the_first_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("directory,path\nx,a/b,base\n")
    with pytest.raises(Invalid, match="line 2: it has more columns than the first line"):
        read_rows(tmp_path / "m.csv")


def test_all_bad_lines_are_named_together(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("directory,path\nx,a/b\nx,A/b\nx,a\n")
    with pytest.raises(Invalid, match=r"so nothing was: line 3: .* use lower case.*; line 4: path .a. names a base"):
        read_rows(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: path.mkdir(), "is not a file"),
        (lambda path: None, "cannot be read"),
        (lambda path: path.write_bytes(b"directory,path\n\xff,x\n"), "cannot be read after line"),
        (lambda path: path.write_bytes(b'directory,path\n"x,a/b\n'), "cannot be read after line"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], object], sentence: str
) -> None:
    make(tmp_path / "m.csv")
    with pytest.raises(Invalid, match=sentence):
        read_rows(tmp_path / "m.csv")
