"""What `loratree serve` writes to stderr: a line for each request, the cause of each failure, and no secret."""

import asyncio
import contextlib
import gc
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from loratree_registry.api.app import create_app
from loratree_registry.api.log.lines import Form, LineFormatter, Stamp
from loratree_registry.api.log.requests import RequestLog
from loratree_registry.api.log.settings import LogSettings
from loratree_registry.api.log.sink import Sink
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import LoratreeError
from loratree_registry.remote.registry import RemoteRegistry
from tests.registry.serving import running

from .conftest import MED

LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<level>\w+) +(?P<method>[A-Z]+) (?P<asked>\S+) "
    r"(?P<status>\d+) (?P<ms>[\d.]+)ms (?P<bytes>\d+)B id=(?P<id>\S+)(?: cause: (?P<cause>.*))?"
)


class Lines:
    """What a server wrote to its stderr so far."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def text(self) -> str:
        return self._file.read_text(encoding="utf-8")

    def requests(self) -> list[dict[str, str]]:
        matches = (LINE.fullmatch(line) for line in self.text().splitlines())
        return [match.groupdict() for match in matches if match]

    def of(self, id_: str) -> dict[str, Any]:
        """The line of one request, which may take a moment."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = [line for line in self.requests() if line["id"] == id_]
            found += [line for line in self.objects() if line.get("id") == id_ and "status" in line]
            if found:
                [line] = found
                return line
            time.sleep(0.01)
        raise AssertionError(f"no line of {id_} in {self.text()}")

    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]


@contextlib.contextmanager
def logging_server(folder: Path, *options: str, **settings: str) -> Iterator[tuple[str, Lines, int]]:
    """Runs the command `loratree serve`; gives its URL, its log and its process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORATREE_")}
    environment = kept | {"LORATREE_HOME": str(folder / "home")} | settings
    command = [sys.executable, "-m", "loratree_cli", "serve", "--port", "0", *options]
    log = folder / "log"
    with (
        log.open("ab") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip(), Lines(log), server.pid
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=30)


def ask(url: str, path: str, **options: Any) -> httpx.Response:
    return httpx.request(options.pop("method", "GET"), url + path, timeout=60, **options)


def raw(url: str, request: bytes) -> bytes:
    """Sends bytes that a client library would not, and reads the answer."""
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), timeout=20) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_each_request_has_a_line_and_an_id(tmp_path: Path) -> None:
    with logging_server(tmp_path) as (url, lines, _):
        answers = {
            path: ask(url, path) for path in ("/v1/bases", "/v1/bases?limit=2", "/v1/nodes/tiny", "/v1/nowhere", "/")
        }
        for path, answer in answers.items():
            line = lines.of(answer.headers["x-request-id"])
            assert (line["method"], line["asked"], line["status"]) == ("GET", path, str(answer.status_code))
            assert line["bytes"] == str(len(answer.content))
            assert float(line["ms"]) > 0
            assert line["level"] == "info"
        assert len({answer.headers["x-request-id"] for answer in answers.values()}) == len(answers)
        head = ask(url, "/v1/bases", method="HEAD")
        assert lines.of(head.headers["x-request-id"])["bytes"] == "0"
        made = ask(url, "/v1/uploads", method="POST", json={"sha256": "sha256:" + "0" * 64, "size": 1})
        assert lines.of(made.headers["x-request-id"])["status"] == "201"
        assert "loratree 0.1.0 serves " in lines.text()
    assert "Traceback" not in lines.text()


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_last_line_says_that_the_server_stops(
    tmp_path: Path, form: Form, workers: str, how: signal.Signals
) -> None:
    with logging_server(tmp_path, "--log-format", form, "--workers", workers) as (url, lines, process):
        ask(url, "/v1/bases")
        os.kill(process, how)
        deadline = time.monotonic() + 30
        while " stops: " not in lines.text() and time.monotonic() < deadline:
            time.sleep(0.05)
    stops = f"loratree 0.1.0 stops: {url} is no longer served"
    *_, last = lines.text().splitlines()
    if form == "json":
        assert (json.loads(last)["message"], json.loads(last)["level"]) == (stops, "info")
    else:
        assert last.endswith(f"Z info    {stops}")
    assert lines.text().count(" stops: ") == 1


def test_a_health_check_is_told_at_debug_only(tmp_path: Path) -> None:
    for level, told in (("info", False), ("debug", True)):
        folder = tmp_path / level
        folder.mkdir()
        with logging_server(folder, "--log-level", level) as (url, lines, _):
            health, other = ask(url, "/v1/health"), ask(url, "/v1/bases")
            lines.of(other.headers["x-request-id"])
            assert (health.headers["x-request-id"] in lines.text()) is told
    with logging_server(tmp_path, "--log-level", "error") as (url, lines, _):
        ask(url, "/v1/bases")
    assert lines.text() == ""


@pytest.mark.parametrize("sane", ["abc", "5f2b9c0d-1a", "Root=1-67891233-abcdef012345678912345678", "a" * 100])
def test_a_clients_own_id_is_kept(served_log: tuple[str, Lines], sane: str) -> None:
    url, lines = served_log
    answer = ask(url, "/v1/bases?limit=1", headers={"X-Request-ID": sane})
    assert answer.headers["x-request-id"] == sane
    assert lines.of(sane)["status"] == "200"


@pytest.mark.parametrize(
    "odd", [b"", b"a b", b"a" * 101, b"\xff\xfe", b"a;rm", b"<b>", b"\x1b[31m", b"a\tb", b"-x", b'a"']
)
def test_an_id_that_is_not_sane_is_replaced(served_log: tuple[str, Lines], odd: bytes) -> None:
    url, lines = served_log
    answer = raw(
        url, b"GET /v1/bases HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Request-ID: " + odd + b"\r\n\r\n"
    )
    given = re.search(rb"x-request-id: (\S+)\r\n", answer)
    if given is None:  # the server's parser takes no such header at all
        assert answer.startswith(b"HTTP/1.1 400 ")
        return
    assert re.fullmatch(rb"[0-9a-f]{8}-[0-9a-f]+", given[1])
    lines.of(given[1].decode())


@pytest.fixture(scope="module")
def served_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Lines]]:
    with logging_server(tmp_path_factory.mktemp("log"), "--log-level", "debug") as (url, lines, _):
        yield url, lines


def test_no_line_holds_what_may_be_a_secret_or_a_control_character(served_log: tuple[str, Lines]) -> None:
    url, lines = served_log
    asked = [
        "/v1/bases?token=sekret&limit=1&password=sekret",
        "/v1/bases?sekret",
        "/v1/bases?limit=1&&=sekret&sekret=",
        "/v1/bases?%74oken=sekret",
    ]
    for path in asked:
        lines.of(ask(url, path).headers["x-request-id"])
    gone = ask(
        url, "/v1/version/tiny/medicine@1?reason=sekret%20words", method="DELETE", headers={"X-Request-ID": "gone"}
    )
    assert lines.of(gone.headers["x-request-id"])["asked"] == "/v1/version/tiny/medicine@1?*"
    head = b" HTTP/1.1\r\nHost: localhost\r\nX-Request-ID: odd-%d\r\nConnection: close\r\n"
    head += b"Authorization: Bearer sekret\r\n\r\n"
    odd = [
        b"/v1/nodes/a%0ab%1b[31m",
        b"/v1/nodes/\xe2\x80\xae",
        b"/v1/nodes/a\x7fb",
        b"/v1/bases?name=\xff",
        b"/" + b"x" * 9000,
    ]
    for number, target in enumerate(odd):
        answer = raw(url, b"GET " + target + head % number)
        if b"x-request-id" in answer:
            lines.of(f"odd-{number}")
    text = lines.text()
    assert "sekret" not in text
    assert all(line.isprintable() and line.isascii() and len(line) < 2000 for line in text.splitlines())


def test_json_lines_have_the_same_fields(tmp_path: Path) -> None:
    with logging_server(tmp_path, "--log-format", "json") as (url, lines, _):
        answer = ask(url, '/v1/bases?limit=2&name="a"')
        line = lines.of(answer.headers["x-request-id"])
        assert list(line) == ["time", "level", "method", "path", "query", "status", "ms", "bytes", "id"]
        assert (line["path"], line["status"], line["bytes"]) == ("/v1/bases", 422, len(answer.content))
        assert isinstance(line["ms"], float)
    assert len(lines.objects()) == len(lines.text().splitlines())


def test_a_database_that_is_down_is_told_with_its_cause_and_the_id_that_the_client_tells(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue("server")
    with server.migrated() as address, logging_server(tmp_path, LORATREE_DATABASE=address) as (url, lines, _):
        assert ask(url, "/v1/bases").status_code == 200
        server.stop_database(address)
        try:
            answers = [ask(url, "/v1/bases"), ask(url, "/v1/bases?limit=1"), ask(url, "/v1/health")]
            for answer in answers:
                assert answer.status_code == 503
                problem, line = answer.json(), lines.of(answer.headers["x-request-id"])
                assert problem["request_id"] == answer.headers["x-request-id"]
                assert (line["level"], line["cause"]) == ("error", problem["detail"])
                assert "does not answer" in line["cause"]
            registry = RemoteRegistry(url)
            with pytest.raises(LoratreeError) as told:
                registry.bases()
            registry.close()
            found = re.search(r" \(request (\S+), see the server's log\)$", str(told.value))
            assert found is not None
            assert lines.of(found[1])["status"] == "503"
        finally:
            server.start_database(address)
        assert ask(url, "/v1/bases").status_code == 200
    assert "Traceback" not in lines.text()


def test_a_store_that_is_down_is_told_with_its_cause(tmp_path: Path) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "sekret", "AWS_EC2_METADATA_DISABLED": "true"}
    store = {"LORATREE_BLOBS": "s3://bucket/x", "LORATREE_S3_ENDPOINT": "http://127.0.0.1:9"}
    with logging_server(tmp_path, **keys, **store) as (url, lines, _):
        # Two parts, so that the server asks the store to begin an upload of parts.
        new = {"sha256": "sha256:" + "0" * 64, "size": 100 * 1024 * 1024}
        answer = ask(url, "/v1/uploads", method="POST", json=new)
        assert answer.status_code == 503
        line = lines.of(answer.headers["x-request-id"])
        assert "check LORATREE_BLOBS, LORATREE_S3_ENDPOINT and the network" in line["cause"]
    assert "Traceback" not in lines.text()
    assert "sekret" not in lines.text()


class Broken(EmbeddedRegistry):
    """A registry with a bug, in whose message a client has a say."""

    def node(self, path: str) -> Any:
        raise ValueError(f"a bug\n2026-01-01T00:00:00.000Z info    a false line \x1b[31m{path}")


class Kept:
    """Stands for the sink, and keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def put(self, line: str) -> None:
        self.lines.append(line)


class Written(logging.Handler):
    """Keeps what the program logs, formatted where it is logged."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.setFormatter(LineFormatter(form))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def test_a_bug_is_told_with_its_traceback_and_the_id(behind: EmbeddedRegistry, tmp_path: Path) -> None:
    broken = Broken(behind._engine, behind._blobs)
    app = create_app(broken, staging=tmp_path)
    kept = Kept()
    app.middleware_stack = RequestLog(app.build_middleware_stack(), LogSettings(), kept)  # type: ignore[arg-type]
    written = [Written("text"), Written("json")]
    with running(app) as url:
        logger = logging.getLogger("uvicorn.error")
        logger.setLevel("ERROR")
        for handler in written:
            logger.addHandler(handler)
        answer = ask(url, f"/v1/nodes/{MED}")
        assert answer.status_code == 500
        deadline = time.monotonic() + 20
        while not written[1].lines and time.monotonic() < deadline:  # uvicorn logs it last
            time.sleep(0.01)
        for handler in written:
            logger.removeHandler(handler)
        broken.close = lambda: None  # type: ignore[method-assign] # the module's other tests use its engine
    [line] = kept.lines
    assert " 500 " in line
    assert "a bug, ValueError in test_log.py:" in line
    assert line.isprintable()
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "a bug" not in answer.text
    asked = answer.headers["x-request-id"]
    [text], [object_] = (handler.lines for handler in written)
    first, *trace = text.splitlines()
    assert first.endswith(f" Exception in ASGI application id={asked}")
    assert "test_log.py" in "".join(trace)
    assert all(line.startswith("    ") and line.isprintable() for line in trace), "no line can be taken for another"
    assert json.loads(object_)["id"] == asked
    assert "ValueError: a bug" in json.loads(object_)["traceback"]


def test_several_workers_write_whole_lines_with_ids_of_their_own(tmp_path: Path) -> None:
    with logging_server(tmp_path, "--workers", "2", "--log-format", "json") as (url, lines, _):
        given = [ask(url, f"/v1/nodes/{'x' * 100}").headers["x-request-id"] for _ in range(60)]
        for one in given:
            assert lines.of(one)["status"] == 404
    assert len(set(given)) == 60
    assert {line["level"] for line in lines.objects()} == {"info"}
    assert len(lines.objects()) == len(lines.text().splitlines())


def test_a_log_that_nobody_reads_stops_no_request(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(write, True)
    sink = Sink(write, most=100)
    begun = time.monotonic()
    for number in range(5000):
        sink.put(f"{number} {'x' * 200}")
        if number % 500 == 0:
            time.sleep(0.03)
    assert time.monotonic() - begun < 10
    content = b""
    while b"are left out: its reader is slower than they come" not in content:
        content += os.read(read, 65536)
        sink.put("more")
    assert content.startswith(b"0 xxx")


def test_a_log_whose_reader_is_gone_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    sink = Sink(write)
    sink.put("lost")
    sink.flush()
    os.close(write)


class Cycle:
    """Holds its scope and sends, as uvicorn's own object of a request does."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self.scope = scope

    async def send(self, message: Any) -> None:
        """Sends nowhere."""


def test_a_request_leaves_nothing_to_the_garbage_collector() -> None:
    """A circle of references for each request made the server a tenth slower."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask_once() -> weakref.ref[Cycle]:
        scope: dict[str, Any] = {"type": "http", "method": "GET", "raw_path": b"/", "query_string": b"", "headers": []}
        cycle = Cycle(scope)
        await asyncio.create_task(RequestLog(app, LogSettings(), Kept())(scope, None, cycle.send))  # type: ignore[arg-type]
        return weakref.ref(cycle)

    async def ask_and_look() -> bool:
        cycle = await ask_once()
        await asyncio.sleep(0)
        return cycle() is None

    gc.disable()
    try:
        assert asyncio.run(ask_and_look())
    finally:
        gc.enable()


def test_a_stamp_is_the_present_time(monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = Stamp()
    for nanoseconds, text in (
        (1_700_000_000_999_999_999, "2023-11-14T22:13:20.999Z"),
        (1_700_000_001_000_000_000, "2023-11-14T22:13:21.000Z"),
        (1_700_000_001_000_900_000, "2023-11-14T22:13:21.000Z"),
        (1_700_000_060_007_000_000, "2023-11-14T22:14:20.007Z"),
    ):
        monkeypatch.setattr(time, "time_ns", lambda now=nanoseconds: now)
        assert stamp() == text
