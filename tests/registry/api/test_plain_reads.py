"""The short way of a plain read answers as the framework's own way does, and what is kept is never out of date."""

import asyncio
import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import pytest

from loratree_registry.api import kept_answers
from loratree_registry.api.serve import configure
from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.database.changes import FileChanges, changes_of
from loratree_registry.database.engine import open_engine
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import Unavailable
from tests.registry.conftest import REGISTRIES, Storage
from tests.registry.material import Material, publish
from tests.registry.serving import Served

from .conftest import MED
from .test_problems import problem

PAGES = ["children/tiny", "descendants/tiny", f"versions/{MED}", f"dependents/{MED}", f"events/{MED}", "bases"]


@pytest.mark.parametrize("page", PAGES)
def test_both_ways_give_the_same_answer(http: httpx.Client, page: str) -> None:
    plain, framework = http.get(f"/v1/{page}"), http.get(f"/v1/{page}?limit=100")
    assert plain.content == framework.content
    names = ("etag", "cache-control", "content-type", "content-length")
    assert [plain.headers[name] for name in names] == [framework.headers[name] for name in names]


@pytest.mark.parametrize("path", ["/v1/nodes/tiny/nowhere", "/v1/nodes/Upper", "/v1/resolve/tiny/medicine@9"])
def test_both_ways_refuse_alike(http: httpx.Client, path: str) -> None:
    plain = problem(http.get(path))
    assert plain["detail"]
    assert plain == problem(http.request("GET", path, headers={"Content-Length": "0"}))
    assert http.request("GET", path, content=b"x").json()["detail"].endswith("takes no body: send it without one")


@pytest.fixture(params=["embedded-sqlite", "embedded-postgresql"])
def both(request: pytest.FixtureRequest, storage: Storage, material: Material) -> Iterator[EmbeddedRegistry]:
    with REGISTRIES[request.param](storage) as registry:
        assert isinstance(registry, EmbeddedRegistry)
        registry.add_base("tiny", material.base)
        for adapter in (material.rank4, material.rank8):
            publish(registry, MED, adapter)
        registry.set_alias(MED, "stable", version=1, expected=None)
        yield registry


def test_what_is_kept_ends_with_the_next_commit_of_any_writer(
    both: EmbeddedRegistry, web: Served, tmp_path: Path
) -> None:
    other = EmbeddedRegistry(open_engine(both._engine.url.render_as_string(hide_password=False)), both._blobs)
    with httpx.Client(base_url=web.over(both, tmp_path), verify=False) as client:
        for turn in range(40):
            now, then = 2 - turn % 2, 1 + turn % 2
            (both if turn % 3 else other).set_alias(MED, "stable", version=now, expected=then)
            for _ in range(2):
                assert client.get(f"/v1/version/{MED}@stable").json()["number"] == now
                assert client.get(f"/v1/aliases/{MED}").json()[0]["version"] == now
    other.close()


def test_an_answer_is_computed_once_while_nothing_changes(
    both: EmbeddedRegistry, web: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    plain = both.version
    monkeypatch.setattr(both, "version", lambda ref: computed.append(ref) or plain(ref))
    with httpx.Client(base_url=web.over(both, tmp_path), verify=False) as client:
        for _ in range(5):
            assert client.get(f"/v1/version/{MED}@stable").json()["number"] == 1
    assert computed == [f"{MED}@stable"]


def test_of_many_who_read_while_one_writes_nobody_sees_an_older_state_than_was_committed(
    both: EmbeddedRegistry, web: Served, tmp_path: Path
) -> None:
    url, committed = web.over(both, tmp_path), [1]

    def write() -> None:
        for turn in range(30):
            both.create_node(f"tiny/n{turn:02}")
            committed.append(turn + 2)

    def read(_: int) -> None:
        with httpx.Client(base_url=url, verify=False) as client:
            while committed[-1] < 31:
                least = committed[-1]
                assert client.get("/v1/count/tiny").json()["descendants"] >= least

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read, number) for number in range(3)]
        pool.submit(write).result()
        for reader in readers:
            reader.result()


def test_a_commit_of_another_process_changes_the_stamp_and_a_read_does_not(tmp_path: Path) -> None:
    file = tmp_path / "file.db"
    run = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()"

    def execute(statement: str) -> None:
        subprocess.run([sys.executable, "-c", run, str(file), statement], check=True)

    execute("CREATE TABLE t (n)")
    changes = FileChanges(file)
    first = changes.stamp()
    assert first is not None
    execute("SELECT n FROM t")
    assert changes.stamp() == first
    execute("INSERT INTO t VALUES (1)")
    assert changes.stamp() != first
    changes.close()
    assert changes.stamp() != first  # a new connection counts anew
    changes.close()


def test_a_database_that_cannot_be_asked_has_no_stamp_and_health_tells(web: Served, tmp_path: Path) -> None:
    file = tmp_path / "file.db"
    assert FileChanges(file).stamp() is None
    file.write_bytes(b"no database" * 1000)
    broken = EmbeddedRegistry(open_engine(file), LocalBlobStore(tmp_path))
    answer = httpx.get(f"{web.over(broken, tmp_path)}/v1/health")
    assert answer.status_code == 503
    assert "name another file, or restore this one" in problem(answer)["detail"]
    broken.close()


def test_damage_is_looked_for_each_time(behind: EmbeddedRegistry, http: httpx.Client, material: Material) -> None:
    file = publish(behind, "tiny/damaged", material.rank2).version.files[0]
    assert http.get("/v1/damaged/tiny/damaged").json() == []
    behind._blobs.delete(file.sha256)
    assert [each["sha256"] for each in http.get("/v1/damaged/tiny/damaged").json()] == [file.sha256]


def test_a_bounded_number_of_answers_of_a_bounded_size_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_answers, "_KEPT", 3)
    kept = kept_answers.KeptAnswers()
    for number in range(5):
        kept.keep(str(number), 1, (b"etag", b"body"))
    kept.keep("large", 1, (b"etag", bytes(1024**2)))
    kept.keep("without", None, (b"etag", b"body"))
    assert [name for name in ("0", "1", "2", "3", "4", "large") if kept.find(name, 1)] == ["2", "3", "4"]
    assert kept.find("4", 2) is None
    assert kept.find("without", None) is None


def test_the_server_speaks_by_httptools_where_it_is() -> None:
    config = configure(lambda: None)  # type: ignore[arg-type, return-value]
    config.load()
    tools = importlib.util.find_spec("httptools") is not None
    assert config.http_protocol_class.__name__ == ("GuardedHttpTools" if tools else "GuardedH11")


def test_what_reads_whole_files_holds_no_plain_read(
    both: EmbeddedRegistry, web: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = Event()
    monkeypatch.setattr(both, "damaged_files", lambda ref: [let_go.wait(60)][:0])
    url = web.over(both, tmp_path)
    with ThreadPoolExecutor(20) as threads, httpx.Client(base_url=url, verify=False, timeout=20) as client:
        try:
            asked = [threads.submit(httpx.get, f"{url}/v1/damaged/{MED}", timeout=60) for _ in range(20)]
            for path in ("health", f"nodes/{MED}", f"resolve/{MED}"):
                assert client.get(f"/v1/{path}").status_code == 200
            assert not any(one.done() for one in asked)
        finally:
            let_go.set()


def test_health_is_asked_of_the_database_again_after_a_second(
    both: EmbeddedRegistry, web: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise Unavailable("the database does not answer")

    with httpx.Client(base_url=web.over(both, tmp_path), verify=False) as client:
        assert client.get("/v1/health").status_code == 200
        monkeypatch.setattr(both, "bases", fail)
        deadline = time.monotonic() + 20
        while client.get("/v1/health").status_code != 503:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_server_gives_a_stamp_that_changes_with_each_commit_and_with_nothing_else(storage: Storage) -> None:
    with storage.postgresql().empty() as url:
        engine = open_engine(url)
        changes = changes_of(engine)
        assert changes is not None
        with engine.connect() as slow, engine.connect() as quick:
            slow.exec_driver_sql("CREATE TABLE t (n int)")
            slow.commit()
            slow.exec_driver_sql("INSERT INTO t VALUES (1)")
            open_yet = changes.stamp()
            assert open_yet is not None
            assert slow.exec_driver_sql("SELECT count(*) FROM t").scalar() == 1
            assert changes.stamp() == open_yet
            quick.exec_driver_sql("INSERT INTO t VALUES (2)")
            quick.commit()
            after_quick = changes.stamp()
            slow.commit()
            after_slow = changes.stamp()
            assert len({open_yet, after_quick, after_slow}) == 3
            quick.exec_driver_sql("SELECT n FROM t")
            assert changes.stamp() == after_slow
            quick.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_current_snapshot%%'"
            )
        assert changes.stamp() is None  # the connection broke, the next stamp is from a new one
        assert changes.stamp() not in (None, after_slow)
        changes.close()
        engine.dispose()


def test_requests_that_come_together_share_the_next_stamp_and_none_gets_an_earlier_one() -> None:
    asked, let_go = [0], Event()

    def ask() -> int:
        asked[0] += 1
        assert let_go.wait(20)
        return asked[0]

    async def run() -> list[object]:
        shared = kept_answers.SharedStamps(ask)
        first = asyncio.create_task(shared.stamp())
        while not asked[0]:
            await asyncio.sleep(0.001)
        later = [asyncio.create_task(shared.stamp()) for _ in range(5)]
        await asyncio.sleep(0.01)
        later[2].cancel()
        let_go.set()
        rest = await asyncio.gather(*later, return_exceptions=True)
        return [await first, *(one for one in rest if not isinstance(one, asyncio.CancelledError))]

    assert asyncio.run(run()) == [1, 2, 2, 2, 2]
