from pathlib import Path

import pytest

from loratree_registry.disk.whole_folder import whole_folder
from loratree_registry.errors import Conflict


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "deep" / "out") as stage:
        (stage / "file").write_text("x")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["file"]


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "out") as stage:
            (stage / "file").write_text("x")
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == []


def test_a_folder_that_was_filled_meanwhile_is_left_alone(tmp_path: Path) -> None:
    def race() -> None:
        with whole_folder(tmp_path / "out") as stage:
            (stage / "file").write_text("x")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("y")

    with pytest.raises(Conflict, match="filled by another program in the meantime"):
        race()
    assert names(tmp_path / "out") == ["theirs"]
    assert names(tmp_path) == ["out"]


def test_what_a_dead_process_left_is_swept_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    (tmp_path / ".out.loratree-dead" / "out").mkdir(parents=True)
    with whole_folder(tmp_path / "out") as first:
        (first / "file").write_text("x")
        with whole_folder(tmp_path / "out"):
            assert not (tmp_path / ".out.loratree-dead").exists()
        assert (first / "file").exists()
        (tmp_path / "out").rmdir()
    assert names(tmp_path / "out") == ["file"]


def test_a_name_with_a_pattern_in_it_sweeps_only_its_own(tmp_path: Path) -> None:
    (tmp_path / ".ab.loratree-dead").mkdir()
    with whole_folder(tmp_path / "[a]b"):
        pass
    assert names(tmp_path) == [".ab.loratree-dead", "[a]b"]
