"""What goes wrong with a database is one sentence, and nothing is half-written."""

import contextlib
import socket
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text

from loratree_registry.database.engine import open_engine, reading, upgrade_database, writing
from loratree_registry.embedded.registry import EmbeddedRegistry, open_embedded
from loratree_registry.errors import Conflict, Corrupt, Invalid, LoratreeError, NotFound, Unavailable
from loratree_registry.settings import Settings
from tests.registry.conftest import Storage, embedded_postgresql
from tests.registry.material import WEIGHTS, Material, publish

SMALL = (
    "SCAN link",
    "SCAN CONSTANT ROW",
    "SCAN (subquery-1)",
    "SCAN shown",
    "SCAN page",
    "SCAN barred",
    "SCAN versions USING INDEX ix_versions_quarantined",
)  # what a plan may read whole: the chain, the list of nothing, a page, the version that bars bytes, the quarantined


@pytest.fixture
def registry(storage: Storage, material: Material) -> Iterator[EmbeddedRegistry]:
    """An embedded registry over SQLite that holds the base `tiny`."""
    registry = open_embedded(storage.settings())
    registry.add_base("tiny", material.base)
    yield registry
    registry.close()


@pytest.fixture
def file(storage: Storage) -> Path:
    """The file of its database."""
    return storage.folder / "home" / "loratree.db"


def sentence(error: pytest.ExceptionInfo[LoratreeError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "sqlalche.me" not in text
    return text


def test_the_home_is_made_for_its_owner_alone(storage: Storage) -> None:
    open_embedded(storage.settings()).close()
    assert (storage.folder / "home").stat().st_mode & 0o777 == 0o700


def test_the_database_is_its_owners_alone_in_a_folder_that_others_may_read(storage: Storage) -> None:
    home = storage.folder / "home"
    home.mkdir(mode=0o755)
    registry = open_embedded(storage.settings())
    registry.bases()
    modes = {file.name: file.stat().st_mode & 0o777 for file in home.glob("loratree.db*")}
    assert modes == dict.fromkeys(["loratree.db", "loratree.db-wal", "loratree.db-shm"], 0o600)
    registry.close()


def test_a_home_that_cannot_be_made_is_one_sentence(storage: Storage) -> None:
    (storage.folder / "home").write_text("a file")
    with pytest.raises(Unavailable, match="set LORATREE_HOME to a folder that can") as error:
        open_embedded(storage.settings())
    sentence(error)


@pytest.mark.parametrize(
    "address",
    [
        "nonsense:u:secret@h",
        "postgres:/u:secret@h/x",
        "postgres://u:secret@h/x",
        "postgresql:/u:secret@h/x",
        "POSTGRESQL://u:secret@h/x",
        "sqlite:/srv/x.db",
        "sqlite://srv/x.db",
        "SQLITE:///x.db",
        "file:///srv/x.db",
        "http:/u:secret@h/x",
        "/srv/x.db",
        "",
        "nonsense",
        "mysql://root:secret@h/x",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///x.db?mode=ro",
        "postgresql+asyncpg://u:secret@h/x",
    ],
)
def test_an_address_of_another_kind_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(Invalid, match="expected sqlite:///FILE or postgresql://") as error:
        open_engine(address)
    sentence(error)
    assert "secret" not in "".join(traceback.format_exception(error.value)).replace(repr(address), "")


def test_an_at_sign_in_a_password_is_not_taken_for_the_host() -> None:
    with pytest.raises(Invalid, match="write it as %40") as error:
        open_engine("postgresql://u:sek@ret@h/x")
    assert "ret@h" not in sentence(error)


def test_a_database_whose_folder_is_not_there_is_one_sentence(storage: Storage) -> None:
    address = f"sqlite:///{storage.folder}/nowhere/x.db"
    with pytest.raises(Unavailable, match="check that its folder exists") as error:
        open_embedded(storage.settings(LORATREE_DATABASE=address))
    sentence(error)


def test_a_file_that_is_no_database_is_one_sentence(storage: Storage) -> None:
    (storage.folder / "home").mkdir()
    (storage.folder / "home" / "loratree.db").write_bytes(b"this is not a database at all, whatever its name" * 20)
    with pytest.raises(Unavailable, match="file is not a database") as error:
        open_embedded(storage.settings())
    sentence(error)


def test_a_disk_that_takes_no_more_of_sqlite_is_told_with_what_to_do(storage: Storage) -> None:
    limited = """
import resource, sys
from loratree_registry.embedded.registry import open_embedded
from loratree_registry.errors import Unavailable
from loratree_registry.settings import Settings
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    open_embedded(Settings.from_environment({"LORATREE_HOME": sys.argv[1]}))
except Unavailable as error:
    print(error)
"""
    # -B: a module that is compiled under the limit would be kept, cut off, for every later process.
    command = [sys.executable, "-B", "-c", limited, str(storage.folder / "home")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.endswith("(disk I/O error): free some space, or check the disk\n")


def test_a_postgresql_that_is_not_there_is_one_sentence_without_its_password(storage: Storage) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        address = f"postgresql://u:secret@127.0.0.1:{taken.getsockname()[1]}/x"
        with pytest.raises(Unavailable, match=r"does not answer.*check that it is running") as error:
            open_embedded(storage.settings(LORATREE_DATABASE=address))
    assert "secret" not in sentence(error)


def test_no_part_of_an_address_that_may_hold_a_password_is_shown(storage: Storage) -> None:
    addresses = [
        "//u@127.0.0.1:1/x?password=sekret",
        "//u:sekret@127.0.0.1:1/x",
        "//127.0.0.1:1/x?user=u&password=se%40kret",
    ]
    for address in addresses:
        with pytest.raises(Unavailable, match="does not answer") as error:
            open_embedded(storage.settings(LORATREE_DATABASE=f"postgresql:{address}"))
        assert "kret" not in sentence(error)


@pytest.mark.parametrize("name", ["a?b", "%41", "a@b", "a#b", "x y", "ä", "sqlite:"])
def test_a_home_may_have_any_name(storage: Storage, name: str) -> None:
    home = storage.folder / name
    open_embedded(Settings.from_environment({"LORATREE_HOME": str(home)})).close()
    assert (home / "loratree.db").is_file()
    assert [entry.name for entry in storage.folder.iterdir()] == [name]


def test_a_postgresql_that_stops_answers_again_when_it_is_back(storage: Storage, material: Material) -> None:
    with storage.postgresql().migrated() as address:
        registry = open_embedded(storage.settings(LORATREE_DATABASE=address))
        registry.add_base("tiny", material.base)
        killer = open_engine(address)
        with writing(killer) as connection:
            others = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            connection.execute(text(f"{others} AND datname = current_database()"))
        killer.dispose()
        assert registry.base("tiny").name == "tiny"
        registry.close()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(registry: EmbeddedRegistry, material: Material) -> None:
    full = pytest.raises(Unavailable, match=r"full.*free some space, nothing was changed")
    with limited(registry), full as error:
        fill(registry)
    sentence(error)
    before = len(registry.children("tiny", limit=1000).items)
    assert [event.kind for event in registry.events("tiny", limit=1000).items].count("node-created") == before
    registry.create_node("tiny/room-again")


def fill(registry: EmbeddedRegistry) -> None:
    """Creates nodes without end, or nearly."""
    for number in range(1000):
        registry.create_node(f"tiny/n{number}", level="user")


@contextlib.contextmanager
def limited(registry: EmbeddedRegistry) -> Iterator[None]:
    """Lets the database grow by four pages at most, as a full disk would."""
    engine = registry._engine
    with reading(engine) as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one() + 4

    def limit(connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    event.listen(engine, "begin", limit)
    yield
    event.remove(engine, "begin", limit)
    engine.dispose()


def test_a_database_that_cannot_be_written_is_one_sentence(storage: Storage, material: Material) -> None:
    registry = open_embedded(storage.settings())
    event.listen(registry._engine, "begin", lambda connection: connection.exec_driver_sql("PRAGMA query_only = ON"))
    with pytest.raises(Unavailable, match="readonly") as error:
        registry.add_base("tiny", material.base)
    sentence(error)
    registry.close()


def test_reading_goes_on_while_another_process_writes_and_writing_waits_its_turn(
    registry: EmbeddedRegistry, file: Path
) -> None:
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    assert registry.node("tiny").path == "tiny"
    threading.Timer(0.3, other.rollback).start()
    assert registry.create_node("tiny/a").path == "tiny/a"
    other.close()


def test_a_database_that_stays_locked_is_one_sentence(
    registry: EmbeddedRegistry, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loratree_registry.database.engine.LOCK_TIMEOUT_S", 0.1)
    hasty = EmbeddedRegistry(open_engine(f"sqlite:///{file}"), registry._blobs)
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable, match=r"locked.*another process is writing, try again") as error:
        hasty.create_node("tiny/a")
    sentence(error)
    other.close()
    hasty.close()


def test_a_database_is_as_durable_and_strict_as_it_is_said_to_be(registry: EmbeddedRegistry) -> None:
    with reading(registry._engine) as connection:
        asked = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert asked == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_an_error_in_a_transaction_takes_all_of_it_back(registry: EmbeddedRegistry) -> None:
    with pytest.raises(ZeroDivisionError), writing(registry._engine) as connection:
        assert connection.execute(text("DELETE FROM event_views")).rowcount / 0
    assert len(registry.events("tiny").items) == 1


def test_a_broken_constraint_is_a_conflict_and_no_traceback_of_the_database(registry: EmbeddedRegistry) -> None:
    with pytest.raises(Conflict, match="try again") as error, writing(registry._engine) as connection:
        connection.execute(text("UPDATE nodes SET last_number = -1"))
    sentence(error)


def test_a_reader_sees_one_moment_whatever_is_written_meanwhile(storage: Storage, material: Material) -> None:
    with storage.postgresql().migrated() as address:
        for settings in (storage.settings(), storage.settings(LORATREE_DATABASE=address)):
            registry = open_embedded(settings)
            registry.add_base("tiny", material.base)
            count = text("SELECT count(*) FROM nodes")
            with reading(registry._engine) as connection:
                before = connection.execute(count).scalar()
                registry.create_node("tiny/a")
                assert connection.execute(count).scalar() == before
            registry.close()


@pytest.mark.parametrize("default", ["repeatable read", "serializable"])
def test_a_writer_sees_what_was_committed_while_it_waited_whatever_the_servers_default_is(
    storage: Storage, material: Material, default: str
) -> None:
    with storage.postgresql().empty() as url:
        upgrade_database(url)
        engine = open_engine(url)
        with writing(engine) as connection:
            name = engine.url.database
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_isolation = '{default}'"))
        engine.dispose()
        registry = open_embedded(storage.settings(LORATREE_DATABASE=url))
        registry.add_base("tiny", material.base)
        engine = open_engine(url)
        with writing(engine) as connection:
            count = text("SELECT count(*) FROM nodes")
            before = connection.scalar(count)
            registry.create_node("tiny/law")
            assert connection.scalar(count) == before + 1
        engine.dispose()
        registry.close()


def test_reading_cannot_write(storage: Storage) -> None:
    with storage.postgresql().migrated() as address:
        registry = open_embedded(storage.settings(LORATREE_DATABASE=address))
        with pytest.raises(Unavailable, match="read-only"), reading(registry._engine) as connection:
            connection.execute(text("DELETE FROM events"))
        registry.close()


def test_bytes_that_the_blob_store_lost_are_told_as_corrupt(
    registry: EmbeddedRegistry, storage: Storage, material: Material
) -> None:
    publish(registry, "tiny/a", material.rank8)
    registry._blobs.delete(material.rank8.file.sha256)
    with pytest.raises(Corrupt, match=material.rank8.file.sha256), registry.open_file("tiny/a", WEIGHTS):
        pass


@pytest.mark.parametrize("follow", [None, "latest", "stable"])
def test_resolving_takes_as_many_queries_whatever_the_depth(
    registry: EmbeddedRegistry, material: Material, follow: str | None
) -> None:
    paths = ["tiny/a", "tiny/a/b", "tiny/a/b/c", "tiny/a/b/c/d"]
    for path in paths:
        publish(registry, path, material.rank4)
        registry.set_alias(path, "stable", version=1, expected=None)
    asked: list[str] = []
    event.listen(registry._engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    counts = []
    for path in (paths[0], paths[-1]):
        asked.clear()
        registry.resolve(path, follow=follow)
        counts.append(len([statement for statement in asked if statement.lstrip().startswith(("SELECT", "WITH"))]))
    assert counts == [1 if follow is None else 3] * 2


def test_publishing_what_was_sent_just_now_takes_one_transaction_of_few_statements(
    registry: EmbeddedRegistry, material: Material
) -> None:
    for path in ("tiny/a", "tiny/a/b"):
        publish(registry, path, material.rank4)
    registry.create_node("tiny/a/b/c")
    asked: list[str] = []
    event.listen(registry._engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert publish(registry, "tiny/a/b/c", material.rank2).created
    transactions = " ".join(asked).split("BEGIN IMMEDIATE")
    assert len(transactions) == 1 + 3  # the lease, that the bytes are stored, the version
    assert len(asked) <= 2 * 2 + 11


def test_no_listing_scans_a_table_that_grows(registry: EmbeddedRegistry, material: Material) -> None:
    publish(registry, "tiny/a", material.rank4)
    publish(registry, "tiny/a/b", material.rank2)
    registry.set_alias("tiny/a", "stable", version=1, expected=None)
    asked: list[tuple[str, Any]] = []
    event.listen(registry._engine, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
    registry.node("tiny/a")
    registry.children("tiny", after="tiny/a")
    registry.descendants("tiny", after="tiny/a")
    registry.versions("tiny/a", after="9")
    registry.resolve("tiny/a/b@1", follow="stable")
    registry.resolve("tiny/a/b", follow="latest")
    registry.lineage("tiny/a/b")
    registry.ancestry("tiny/a/b")
    registry.dependents("tiny/a@stable")
    registry.dependents("tiny", after="1")
    registry.holders(material.rank4.file.sha256, after="1")
    registry.holders(material.rank4.file.sha256, quarantined=True)
    registry.aliases("tiny/a")
    registry.base("tiny")
    registry.events("tiny", after="9")
    publish(registry, "tiny/a/c", material.rank2.variant(1), "tiny/a@1")  # asks whether its bytes are quarantined
    assert any("version_files.sha256 ||" in query and "quarantined_at" in query for query, _ in asked)
    queries = [(query, values) for query, values in asked if query.startswith(("SELECT", "WITH"))]
    assert len(queries) > 20
    scans = []
    with sqlite3.connect(registry._engine.url.database or "") as connection:
        for query, values in queries:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {query}", values).fetchall()
            scans += [f"{step[3]}: {query}" for step in plan if step[3].startswith("SCAN") and step[3] not in SMALL]
    connection.close()
    assert scans == []


@pytest.mark.parametrize("lock", ["BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_the_first_connection_waits_for_another_process_that_locks_a_new_file(storage: Storage, lock: str) -> None:
    file = storage.folder / "new.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE made (a)")
        other.execute(lock)
        other.execute("SELECT * FROM made").fetchall()
        timer = threading.Timer(0.5, other.execute, ["COMMIT"])
        timer.start()
        engine = open_engine(file)
        with reading(engine) as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        timer.join()
        engine.dispose()


def test_the_threads_of_one_process_write_in_turn_and_give_up_in_the_end(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(storage.folder / "new.db")
    written: list[str] = []

    def write(name: str) -> None:
        with writing(engine):
            written.append(name)

    with writing(engine):
        waiting = threading.Thread(target=write, args=["first"])
        waiting.start()
        waiting.join(0.2)
        assert written == []
    waiting.join()
    assert written == ["first"]
    monkeypatch.setattr("loratree_registry.database.engine.LOCK_TIMEOUT_S", 0.1)
    with (
        writing(engine),
        ThreadPoolExecutor(1) as thread,
        pytest.raises(Unavailable, match=r"it is locked.*try again$"),
    ):
        thread.submit(write, "second").result()
    write("third")
    assert written == ["first", "third"]
    engine.dispose()


def prepared(engine: Engine) -> int:
    """How many statements PostgreSQL keeps planned for the one connection in the pool."""
    with reading(engine) as connection:
        count: int = connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one()
        return count


def test_postgresql_keeps_its_plans_from_one_read_to_the_next(storage: Storage, material: Material) -> None:
    with embedded_postgresql(storage) as registry:
        registry.add_base("tiny", material.base)
        publish(registry, "tiny/legal", material.rank4)
        for _ in range(8):
            registry.resolve("tiny/legal")
        planned = prepared(registry._engine)
        assert planned > 0
        for _ in range(8):
            with pytest.raises(NotFound):
                registry.node("tiny/nothing")
        registry.resolve("tiny/legal")
        assert prepared(registry._engine) > planned


@pytest.mark.parametrize("fresh_s", [0.0, 60.0])
def test_connections_that_the_server_closed_are_replaced(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, fresh_s: float
) -> None:
    with embedded_postgresql(storage) as registry:
        ask = text("SELECT 1")
        with reading(registry._engine) as one, reading(registry._engine) as two:
            one.execute(ask)
            two.execute(ask)
        ended = open_engine(registry._engine.url.render_as_string(hide_password=False))
        with ended.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND datname = current_database()"
                )
            )
        ended.dispose()
        monkeypatch.setattr("loratree_registry.database.postgresql._FRESH_S", fresh_s)
        for _ in range(3):
            with reading(registry._engine) as connection:
                assert connection.execute(ask).scalar_one() == 1


def test_a_connection_that_was_not_used_for_a_moment_is_asked_first(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loratree_registry.database.postgresql._FRESH_S", 0.0)
    with embedded_postgresql(storage) as registry:
        with reading(registry._engine) as connection:
            connection.connection.driver_connection.pgconn.finish()  # type: ignore[union-attr]  # as if the server had gone
        with reading(registry._engine) as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1


LOSE_THE_CONNECTION = """
import sys
from sqlalchemy import text
from loratree_registry.database.engine import open_engine, writing
from loratree_registry.errors import Unavailable

engine, other = open_engine(sys.argv[1]), open_engine(sys.argv[1])
try:
    with writing(engine) as connection:
        own = connection.scalar(text("SELECT pg_backend_pid()"))
        with writing(other) as killer:
            killer.execute(text("SELECT pg_terminate_backend(:own, 10000)"), {"own": own})
        insert = text("INSERT INTO tombstones (node_id, number) VALUES (:node, :number)")
        connection.execute(insert, [{"node": 1, "number": number} for number in range(100)])  # many: a pipeline
except Unavailable as error:
    print(error)
"""


def test_a_connection_that_is_lost_in_the_middle_of_many_rows_is_one_sentence(storage: Storage) -> None:
    with storage.postgresql().migrated() as url:
        command = [sys.executable, "-c", LOSE_THE_CONNECTION, url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")
    assert "does not answer" in done.stdout
