"""Clients that stop: within a header, a body or an answer. Each is let go in time, and others are served meanwhile."""

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from loratree_registry.api import connections
from loratree_registry.api.app import create_app
from loratree_registry.api.connections import MAX_HEADER, Bounds, Guarded
from loratree_registry.api.log.once_per_kind import OncePerKind
from loratree_registry.embedded.registry import EmbeddedRegistry
from tests.registry.material import sha256
from tests.registry.serving import running

from .test_serve import serving

PROTOCOLS = {name: kind for name in ("GuardedH11", "GuardedHttpTools") if (kind := getattr(connections, name, None))}
HEADER_S, STALL_S, MOST = 0.6, 0.8, 10
SLACK_S = 8.0  # how much later than its deadline a busy machine may close a connection
HEALTH = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> type[Guarded]:
    """A protocol with short deadlines."""
    return type("Quick", (PROTOCOLS[request.param],), {"bounds": Bounds(HEADER_S, STALL_S, MOST)})


@pytest.fixture
def app(behind: EmbeddedRegistry, tmp_path: Path) -> Any:
    return create_app(behind, staging=tmp_path / "uploads")


@pytest.fixture
def port(protocol: type[Guarded], app: Any) -> Iterator[int]:
    with running(app, protocol) as url:
        yield httpx.URL(url).port or 0


@contextmanager
def connected(port: int, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(sent)
        yield connection


def answer_of(connection: socket.socket) -> bytes:
    """All that the server sends until it closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def seconds_to_close(connection: socket.socket) -> tuple[float, bytes]:
    start = time.monotonic()
    answer = answer_of(connection)
    return time.monotonic() - start, answer


@pytest.mark.parametrize("before", [b"", HEALTH])
@pytest.mark.parametrize("sent", [b"G", b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nX-Slow: 1"])
def test_a_header_that_stops_is_answered_408_in_time_also_on_a_connection_that_was_used(
    port: int, before: bytes, sent: bytes
) -> None:
    with connected(port, before) as connection:
        if before:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(sent)
        seconds, answer = seconds_to_close(connection)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/problem+json")
    assert answer.endswith(b'"instance":"/"}')
    assert HEADER_S / 2 < seconds < HEADER_S + SLACK_S


def test_a_header_that_comes_a_byte_at_a_time_has_the_same_deadline(port: int) -> None:
    with connected(port) as connection:
        start = time.monotonic()
        with contextlib.suppress(OSError):
            for byte in HEALTH[:-1] * 100:
                connection.sendall(bytes([byte]))
                time.sleep(0.1)
        assert time.monotonic() - start < HEADER_S + SLACK_S


def test_a_connection_that_sends_nothing_is_closed_without_an_answer(port: int) -> None:
    with connected(port) as connection:
        seconds, answer = seconds_to_close(connection)
    assert answer == b""
    assert HEADER_S / 2 < seconds < HEADER_S + SLACK_S


POST = b"POST /v1/nodes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("head", [b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"])
def test_a_body_that_stops_is_answered_408_in_time(port: int, head: bytes) -> None:
    with connected(port, POST + head) as connection:
        seconds, answer = seconds_to_close(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert STALL_S / 2 < seconds < STALL_S + SLACK_S


def staged(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "uploads").rglob("*") if path.is_file())


def begin(port: int, content: bytes) -> str:
    url = f"http://127.0.0.1:{port}"
    answer = httpx.post(f"{url}/v1/uploads", json={"sha256": sha256(content), "size": len(content)})
    return answer.json()["next"]["url"]


def test_an_upload_that_stops_is_let_go_and_can_be_sent_again(port: int, tmp_path: Path) -> None:
    place = begin(port, b"0123456789")
    head = f"PUT {place} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n".encode()
    with connected(port, head + b"012345") as connection:
        assert seconds_to_close(connection)[0] < STALL_S + SLACK_S
    deadline = time.monotonic() + SLACK_S
    while staged(tmp_path) != ["announced"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert httpx.put(f"http://127.0.0.1:{port}{place}", content=b"0123456789").status_code == 204


def test_an_upload_that_is_slow_and_moves_arrives_whole(port: int, tmp_path: Path) -> None:
    content = b"0123456789" * 2
    place = begin(port, content)
    head = f"PUT {place} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    with connected(port, head.encode()) as connection:
        for byte in content:  # three times as long as a body may stop
            connection.sendall(bytes([byte]))
            time.sleep(3 * STALL_S / len(content))
        assert answer_of(connection).startswith(b"HTTP/1.1 204")


class Endless:
    """An application that answers as much as is taken, and notes when it is told to stop."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.sent = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = [(b"content-type", b"application/octet-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            while self.sent < 32 * 1024**2:
                await send({"type": "http.response.body", "body": bytes(256 * 1024), "more_body": True})
                self.sent += 256 * 1024
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.ended.set()


def test_a_client_that_takes_no_answer_is_let_go(protocol: type[Guarded]) -> None:
    app = Endless()
    with running(app, protocol) as url, connected(httpx.URL(url).port or 0, HEALTH) as connection:
        start = time.monotonic()
        assert app.ended.wait(STALL_S + SLACK_S)
        assert time.monotonic() - start > STALL_S / 2
        answer = answer_of(connection)
    assert len(answer) < 32 * 1024**2
    assert not answer.endswith(b"0\r\n\r\n")  # so the client can tell that it is not whole


def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(protocol: type[Guarded]) -> None:
    app = Endless()
    request = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with running(app, protocol) as url, connected(httpx.URL(url).port or 0, request) as connection:
        received, start = 0, time.monotonic()
        while chunk := connection.recv(1024**2):
            received += len(chunk)
            if time.monotonic() - start < 3 * STALL_S:
                time.sleep(STALL_S / 8)
    assert received > 32 * 1024**2


class Whole:
    """An application that sends its answer in one piece, which uvicorn calls complete before it has left."""

    size = 16 * 1024**2

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            length = [(b"content-length", str(self.size).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": length})
            await send({"type": "http.response.body", "body": bytes(self.size)})


@pytest.mark.parametrize("header", [b"", b"\r\nConnection: close"])
def test_an_answer_in_one_piece_may_be_taken_slowly_too(protocol: type[Guarded], header: bytes) -> None:
    request = HEALTH.replace(b"\r\n\r\n", header + b"\r\n\r\n")
    with running(Whole(), protocol) as url, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", httpx.URL(url).port or 0))
        connection.sendall(request)
        received, start = 0, time.monotonic()
        while received < Whole.size and (chunk := connection.recv(64 * 1024)):
            received += len(chunk)
            if time.monotonic() - start < 4 * STALL_S:
                time.sleep(STALL_S / 16)
    assert received > Whole.size


def test_clients_that_send_nothing_do_not_keep_others_out(port: int) -> None:
    with ExitStack() as opened:
        held = [opened.enter_context(connected(port, b"GET /v1/health HT")) for _ in range(4 * MOST)]
        start = time.monotonic()
        for _ in range(3):
            assert httpx.get(f"http://127.0.0.1:{port}/v1/health", timeout=SLACK_S).status_code == 200
        assert time.monotonic() - start < SLACK_S
        assert answer_of(held[0]) == b""  # the one that had waited longest was closed


def test_where_the_server_works_for_as_many_as_it_takes_the_next_is_told_so(
    app: Any, protocol: type[Guarded], behind: EmbeddedRegistry
) -> None:
    go = threading.Event()

    class Busy(EmbeddedRegistry):
        def bases(self, **how: Any) -> Any:
            go.wait(30)
            return super().bases(**how)

    app.state.registry = Busy(behind._engine, behind._blobs)
    request = HEALTH.replace(b"/v1/health", b"/v1/bases")
    with running(app, protocol) as url, ExitStack() as opened:
        port = httpx.URL(url).port or 0
        held = [opened.enter_context(connected(port, request)) for _ in range(MOST)]
        time.sleep(0.5)  # until the server has read each
        with connected(port) as refused:
            answer = answer_of(refused)
        assert answer.startswith(b"HTTP/1.1 503 Unavailable\r\n")
        assert b"this server works for 10 clients, as many as it takes: try again in a while" in answer
        go.set()
        for connection in held:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert httpx.get(f"{url}/v1/bases").status_code == 200


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"GET /" + b"x" * MAX_HEADER * 2 + b" HTTP/1.1\r\n\r\n", (b"431", b"400")),
        (HEALTH[:-2] + b"X: " + b"x" * MAX_HEADER * 5, (b"431", b"400")),
        (HEALTH[:-2] + b"".join(b"X%d: 1\r\n" % n for n in range(40_000)), (b"431", b"400")),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: " + b"x" * MAX_HEADER * 8, (b"431", b"400")),
        (b"nonsense\r\n\r\n", (b"400",)),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), (b"400",)),
    ],
)
def test_what_is_no_request_or_too_long_a_header_is_refused_with_a_problem(
    port: int, sent: bytes, statuses: tuple[bytes, ...]
) -> None:
    with connected(port) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(sent)
        answer = answer_of(connection)
    assert not answer or answer.split()[1] in statuses  # a client that still sends may lose the answer
    assert not answer or b"application/problem+json" in answer
    assert httpx.get(f"http://127.0.0.1:{port}/v1/health").status_code == 200


def test_a_header_of_almost_the_most_is_read(port: int) -> None:
    headers = {f"X-{n}": "x" * 1000 for n in range(60)}
    assert httpx.get(f"http://127.0.0.1:{port}/v1/health", headers=headers).status_code == 200


class Noted(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_each_kind_of_trouble_is_told_once_and_then_how_often_it_came() -> None:
    logger, noted = logging.getLogger("tests.quiet"), Noted()
    logger.propagate = False
    logger.addHandler(noted)
    logger.addFilter(OncePerKind(0.3))
    for number in range(1000):
        logger.error("connection %d failed\nat line %d", number, number)
        logger.error("another failed")
    assert noted.lines == ["connection 0 failed\nat line 0", "another failed"]
    time.sleep(0.4)
    logger.error("another failed")
    assert noted.lines[2:] == ["another failed (and 999 more like this since it was last told)"]
    for kind in (ValueError, KeyError, ValueError):
        try:
            raise kind("x")
        except (ValueError, KeyError):
            logger.exception("a bug")
    assert noted.lines[3:] == ["a bug", "a bug"]
    logger.handlers.clear()
    logger.filters.clear()


def test_a_server_with_few_files_outlives_more_clients_than_it_has_files_for(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> None:
    """The real server, with its real deadlines: 400 clients that stop within their headers, and files for 200."""
    log = tmp_path / "log"
    with log.open("wb") as errors, serving(tmp_path / "home", files=200, stderr=errors) as (url, process):
        port = httpx.URL(url).port or 0
        with ExitStack() as opened:
            for _ in range(400):
                opened.enter_context(connected(port, b"GET /v1/health HTTP/1.1\r\nX: "))
            start = time.monotonic()
            for _ in range(5):
                assert httpx.get(f"{url}/v1/health", timeout=SLACK_S).status_code == 200
            assert time.monotonic() - start < SLACK_S
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    record_property("measured", f"400 stopped clients left {log.stat().st_size} bytes in the log")
    assert log.stat().st_size < 20_000, log.read_text()[:3000]
