"""Settings: what the environment says, and what follows where it says nothing."""

from pathlib import Path

import pytest

from loratree_registry.settings import Settings


def test_everything_follows_from_the_home(tmp_path: Path) -> None:
    settings = Settings.from_environment({"LORATREE_HOME": str(tmp_path)})
    assert settings == Settings(
        home=tmp_path,
        url=None,
        database=tmp_path / "loratree.db",
        blobs=f"{tmp_path}/blobs",
        s3_endpoint=None,
        s3_public_endpoint=None,
        direct=True,
    )


def test_each_part_may_be_elsewhere() -> None:
    settings = Settings.from_environment(
        {
            "LORATREE_HOME": "/somewhere",
            "LORATREE_URL": "http://127.0.0.1:8321",
            "LORATREE_DATABASE": "postgresql://h/loratree",
            "LORATREE_BLOBS": "s3://bucket/prefix",
            "LORATREE_S3_ENDPOINT": "http://127.0.0.1:9000",
            "LORATREE_S3_PUBLIC_ENDPOINT": "https://s3.example.org",
        }
    )
    assert settings.home == Path("/somewhere")
    assert (settings.url, settings.database) == ("http://127.0.0.1:8321", "postgresql://h/loratree")
    assert (settings.blobs, settings.s3_endpoint) == ("s3://bucket/prefix", "http://127.0.0.1:9000")
    assert settings.s3_public_endpoint == "https://s3.example.org"


def test_an_empty_variable_counts_as_not_set(tmp_path: Path) -> None:
    names = ("URL", "DATABASE", "BLOBS", "S3_ENDPOINT", "S3_PUBLIC_ENDPOINT")
    empty = {f"LORATREE_{name}": "" for name in names}
    home = {"LORATREE_HOME": str(tmp_path)}
    assert Settings.from_environment(home | empty) == Settings.from_environment(home)


def test_the_default_home_is_the_platforms_data_folder() -> None:
    home = Settings.from_environment({}).home
    assert home.is_absolute()
    assert home.name == "loratree"


def test_a_home_may_be_written_with_a_tilde_or_relative(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environment({"LORATREE_HOME": "~/x"}).home == tmp_path / "x"
    assert Settings.from_environment({"LORATREE_HOME": "x"}).home == tmp_path / "x"
