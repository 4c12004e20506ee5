import stat
from pathlib import Path

import pytest

from loratree_registry.errors import Invalid, Unavailable
from loratree_registry.locations import base_directory, remember_base

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def test_a_base_is_found_where_it_was_last_seen(tmp_path: Path) -> None:
    home, first, second = tmp_path / "home", tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert base_directory(home, ONE) is None
    remember_base(home, ONE, first)
    remember_base(home, TWO, first)
    remember_base(home, ONE, second)
    assert base_directory(home, ONE) == second
    assert base_directory(home, TWO) == first
    second.rmdir()
    assert base_directory(home, ONE) is None


def test_the_file_is_readable_by_its_owner_alone_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    remember_base(home, ONE, tmp_path)
    assert stat.S_IMODE((home / "bases.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [file.name for file in home.iterdir()] == ["bases.json"]


def test_a_relative_folder_is_remembered_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    remember_base(tmp_path / "home", ONE, Path("model"))
    assert base_directory(tmp_path / "home", ONE) == tmp_path / "model"


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', "[" * 100_000])
def test_a_damaged_file_is_refused_with_the_way_out(text: str, tmp_path: Path) -> None:
    (tmp_path / "bases.json").write_text(text)
    with pytest.raises(Invalid, match="add the bases again"):
        base_directory(tmp_path, ONE)


def test_a_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((Unavailable, Invalid), match="file"):
        remember_base(tmp_path / "file", ONE, tmp_path)
