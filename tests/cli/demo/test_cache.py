import multiprocessing
from pathlib import Path

import pytest

from loratree_cli.demo.cache import Cache
from loratree_registry.errors import Conflict, Invalid


class Counted:
    """Writes a folder of one file and counts how often."""

    def __init__(self, text: str = "made") -> None:
        self.text, self.times = text, 0

    def __call__(self, path: Path) -> None:
        self.times += 1
        path.mkdir()
        (path / "file").write_text(self.text)


def test_a_part_is_made_once_and_then_kept(tmp_path: Path) -> None:
    build = Counted()
    assert Cache(tmp_path / "out").make("parts/one", {"rank": 4}, build) is True
    assert Cache(tmp_path / "out").make("parts/one", {"rank": 4}, build) is False
    assert build.times == 1


def test_a_part_is_made_again_when_its_inputs_change(tmp_path: Path) -> None:
    cache, build = Cache(tmp_path / "out"), Counted()
    cache.make("one", {"rank": 4}, build)
    assert cache.make("one", {"rank": 8}, build) is True
    assert cache.make("one", {"rank": 4}, build) is True


@pytest.mark.parametrize("damage", ["edit", "delete", "add", "empty"])
def test_a_part_whose_files_changed_is_made_again(tmp_path: Path, damage: str) -> None:
    cache, build = Cache(tmp_path / "out"), Counted()
    cache.make("one", 1, build)
    file = cache.root / "one" / "file"
    if damage == "edit":
        file.write_text("edit")
    elif damage == "delete":
        file.unlink()
    elif damage == "add":
        file.with_name("more").write_text("")
    else:
        file.unlink()
        file.parent.rmdir()
    assert cache.make("one", 1, build) is True
    assert [path.name for path in (cache.root / "one").iterdir()] == ["file"]
    assert file.read_text() == "made"


@pytest.mark.parametrize("record", ["", "{", "[]", "null", '{"inputs": "sha256:0"}', "[" * 10**5])
def test_a_broken_record_counts_as_none(tmp_path: Path, record: str) -> None:
    cache, build = Cache(tmp_path / "out"), Counted()
    cache.make("one", 1, build)
    (cache.root / ".made" / "one.json").write_text(record)
    assert cache.make("one", 1, build) is True


def test_a_part_that_was_interrupted_is_begun_anew(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "out")

    def interrupted(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("")
        raise KeyboardInterrupt

    cache.make("one", 1, Counted("before"))
    with pytest.raises(KeyboardInterrupt):
        cache.make("one", 2, interrupted)
    assert not cache.holds("one", 1)
    assert not cache.holds("one", 2)
    cache.make("one", 2, Counted())
    assert [path.name for path in (cache.root / "one").iterdir()] == ["file"]


def test_the_digest_of_a_part_follows_its_bytes(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "out")
    cache.make("one", 1, Counted("a"))
    first = cache.digest("one")
    cache.make("one", 2, Counted("a"))
    assert cache.digest("one") == first
    cache.make("one", 3, Counted("b"))
    assert cache.digest("one") != first


def test_starting_over_removes_the_parts_and_nothing_else(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "out")
    cache.make("parts/one", 1, Counted())
    cache.make("two", 1, lambda path: path.write_text("a file"))
    (cache.root / "mine.txt").write_text("not the demo's")
    cache.clear()
    assert not cache.holds("parts/one", 1)
    assert not (cache.root / "parts" / "one").exists()
    assert not (cache.root / "two").exists()
    assert (cache.root / "mine.txt").exists()


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(Invalid, match="not the demo's"):
        Cache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(Invalid, match="is a file"):
        Cache(tmp_path / "out")


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    with Cache(tmp_path / "out").alone(), multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(enter, (tmp_path / "out",)).startswith("another demo is at work in ")
    assert enter(tmp_path / "out") == "alone"


def enter(root: Path) -> str:
    try:
        with Cache(root).alone():
            return "alone"
    except Conflict as error:
        return str(error)
