import multiprocessing
import stat
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from loratree_registry.errors import Invalid, Unavailable
from loratree_registry.workspace.base_locations import base_directory, remember_base

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
    file = home / "bases" / f"{'1' * 64}.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert list(file.parent.iterdir()) == [file]


def test_a_relative_folder_is_remembered_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    remember_base(tmp_path / "home", ONE, Path("model"))
    assert base_directory(tmp_path / "home", ONE) == tmp_path / "model"


@pytest.mark.parametrize("text", ["", "[]", "7", '{"a": 1}', '{"directory": 1}', "[" * 100_000])
def test_a_damaged_file_is_refused_with_the_way_out(text: str, tmp_path: Path) -> None:
    remember_base(tmp_path, ONE, tmp_path)
    (tmp_path / "bases" / f"{'1' * 64}.json").write_text(text)
    with pytest.raises(Invalid, match="add the base again"):
        base_directory(tmp_path, ONE)


def test_a_home_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((Unavailable, Invalid), match="file"):
        remember_base(tmp_path / "file", ONE, tmp_path)


@pytest.mark.parametrize("digest", ["", "../../x", "sha256:../../x", ONE + "\n"])
def test_a_digest_that_is_none_becomes_no_files_name(digest: str, tmp_path: Path) -> None:
    for ask in (lambda: remember_base(tmp_path / "home", digest, tmp_path), lambda: base_directory(tmp_path, digest)):
        with pytest.raises(Invalid, match="not a base's digest"):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_processes_that_note_bases_at_the_same_time_lose_none(tmp_path: Path) -> None:
    digests = [f"sha256:{number:064x}" for number in range(100)]
    home, context = tmp_path / "home", multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        for done in [pool.submit(remember_base, home, digest, tmp_path) for digest in digests]:
            done.result()
    assert [base_directory(home, digest) for digest in digests] == [tmp_path] * 100
