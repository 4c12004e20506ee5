"""Doctor reports each passed and failed check, with a remedy, and leaves nothing behind."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from loratree_registry.blobs.probe import Check
from loratree_registry.core.times import now
from loratree_registry.database.engine import writing
from loratree_registry.housekeeping.doctor import diagnose
from loratree_registry.settings import Settings
from tests.registry.conftest import Build, Storage
from tests.registry.material import Material, publish


def checked(settings: Settings) -> dict[str, Check]:
    return {check.name: check for check in diagnose(settings)}


@pytest.mark.parametrize(("database", "blobs"), [("sqlite", "local"), ("postgresql", "local"), ("sqlite", "s3")])
def test_a_sound_registry_has_no_failing_check_and_stays_as_it_is(
    build: Build, material: Material, database: str, blobs: str
) -> None:
    house = build(database, blobs)
    house.registry.add_base("tiny", material.base)
    publish(house.registry, "tiny/law", material.rank2)
    before = sorted(held.digest for held in house.storage.blobs.list_blobs())
    found = checked(house.settings)
    assert [check for check in found.values() if check.ok is False] == []
    assert found["migrations"].ok is found["leftovers"].ok is found["database is writable"].ok is True
    assert sorted(held.digest for held in house.storage.blobs.list_blobs()) == before
    assert house.storage.blobs.sweep(before=now() + timedelta(days=1), dry_run=True) == []
    says = found["database"].says
    if database == "sqlite":
        assert "journal_mode wal, synchronous FULL, busy_timeout 30000, foreign_keys 1" in says
    else:
        assert "fsync off" in says  # the tests' own server, whose data need not survive a power cut
        assert found["database"].ok is None
        assert found["path order"].says == "paths are ordered by the collation C"
        assert found["database clock"].ok is found["database permissions"].ok is True


def test_nothing_is_made_where_nothing_is_there_yet(tmp_path: Path) -> None:
    settings = Settings.from_environment({"LORATREE_HOME": str(tmp_path / "home")})
    found = checked(settings)
    assert found["home"].ok is found["database"].ok is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_home_that_cannot_be_made_fails(tmp_path: Path, home: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    found = checked(Settings.from_environment({"LORATREE_HOME": str(tmp_path / home)}))
    assert found["home"].ok is False
    assert "set LORATREE_HOME" in found["home"].says


def test_a_database_in_a_folder_that_is_not_there_fails(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/nonexist/x.db"
    found = checked(Settings.from_environment({"LORATREE_HOME": str(tmp_path), "LORATREE_DATABASE": address}))
    assert found["database"].ok is False
    assert "cannot be made" in found["database"].says


def test_an_s3_server_that_does_not_answer_is_told_once(tmp_path: Path, bucket: dict[str, str]) -> None:
    missing = bucket | {"LORATREE_HOME": str(tmp_path), "LORATREE_BLOBS": "s3://nowhere"}
    found = [check for check in diagnose(Settings.from_environment(missing)) if check.name.startswith("blobs")]
    assert [(check.name, check.ok) for check in found] == [("blobs: reachable", False)]


def test_presigned_urls_are_tried_where_clients_are_sent(tmp_path: Path, bucket: dict[str, str]) -> None:
    public = {"LORATREE_HOME": str(tmp_path), "LORATREE_S3_PUBLIC_ENDPOINT": "http://127.0.0.1:9"}
    assert checked(Settings.from_environment(bucket | public))["blobs: presigned URLs"].ok is None


def test_what_others_may_read_and_what_was_left_behind_are_told(build: Build) -> None:
    house = build()
    house.settings.home.chmod(0o755)
    with writing(house.storage.engine) as connection:
        connection.execute(
            text("INSERT INTO blobs (sha256, size, touched_at, state) VALUES (:sha256, 1, :at, 'expected')"),
            {"sha256": f"sha256:{'0' * 64}", "at": "2020-01-01 00:00:00.000000"},
        )
    found = checked(house.settings)
    assert found["home"].says.endswith(f"so other users may enter it: chmod 700 {house.settings.home}")
    assert found["leftovers"] == Check(
        "leftovers",
        None,
        "1 blobs expected for a day or more, 0 condemned, 0 uploads open for a day or more: run `loratree gc`",
    )


def test_postgresql_without_the_schema_or_without_rights_fails_with_a_remedy(storage: Storage) -> None:
    server = storage.postgresql()
    with server.empty() as url:
        found = checked(storage.settings(LORATREE_DATABASE=url))
    assert found["migrations"].ok is False
    assert "is at none, expected" in found["migrations"].says
    assert found["migrations"].says.endswith("run `loratree db upgrade`")
    with server.empty() as url:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE alembic_version AS SELECT '0001' AS version_num"))
        engine.dispose()
        found = checked(storage.settings(LORATREE_DATABASE=url))
    assert [name for name, check in found.items() if check.ok is False] == ["migrations"]
    with server.migrated() as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("CREATE ROLE reader LOGIN"))
            connection.execute(text("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader"))
            as_reader = engine.url.set(username="reader").render_as_string(hide_password=False)
            try:
                found = checked(storage.settings(LORATREE_DATABASE=as_reader))
            finally:
                connection.execute(text("DROP OWNED BY reader"))
                connection.execute(text("DROP ROLE reader"))
        engine.dispose()
    assert found["database permissions"].ok is False
    assert "INSERT on bases" in found["database permissions"].says


def test_what_cannot_be_reached_is_one_failing_check_each(tmp_path: Path) -> None:
    (tmp_path / "loratree.db").write_bytes(b"not a database, but long enough to be taken for one" * 40)
    found = checked(Settings.from_environment({"LORATREE_HOME": str(tmp_path), "LORATREE_BLOBS": "gopher://x"}))
    assert found["database"].ok is found["blobs"].ok is False
    assert "not a database" in found["database"].says
    found = checked(Settings.from_environment({"LORATREE_HOME": str(tmp_path), "LORATREE_URL": "http://127.0.0.1:1"}))
    assert found["server"].ok is False


def test_a_server_is_asked_for_its_health_release_and_latency(build: Build, storage: Storage) -> None:
    url = storage.served().over(build().registry, storage.folder)
    found = checked(storage.settings(LORATREE_URL=url))
    assert "answers in" in found["server"].says
    assert found["server"].ok is found["server's release"].ok is True
    assert "database" not in found
