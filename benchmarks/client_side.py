"""HTTP clients, the same for every server: connections that are kept, a thread each."""

import http.client
import itertools
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.side import each_ms, per_second, serve

_KEPT = threading.local()
_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]+)\r\n(?s:.*?\r\n)??\r\n", re.IGNORECASE)


def latencies(host: str, port: int, paths: list[str]) -> list[float]:
    """The milliseconds that one client waits for each path."""
    _KEPT.__dict__.clear()  # a server closes what was idle since the turn before
    return each_ms(_get, [[host, port, path] for path in paths])


def throughput(host: str, port: int, paths: list[str], clients: int) -> float:
    """The answers a second that as many clients get."""
    return per_second(_get, [[[host, port, path] for path in paths[client::clients]] for client in range(clients)])


def rate(port: int, paths: list[str], clients: int, seconds: float) -> float:
    """The answers a second to as many connections, asked and read in turn by bare sockets: little beside the server."""
    requests = itertools.cycle([f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() for path in paths])
    with ExitStack() as opened:
        connections = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(clients)]
        for connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _ask_each(connections, requests)
        start, answers = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            answers += _ask_each(connections, requests)
        return answers / (time.perf_counter() - start)


def _ask_each(connections: list[socket.socket], requests: Iterator[bytes]) -> int:
    for connection in connections:
        connection.sendall(next(requests))
    for connection in connections:
        _read_answer(connection)
    return len(connections)


def _read_answer(connection: socket.socket) -> None:
    received = b""
    while not (found := _LENGTH.search(received)) or len(received) < received.find(_END) + len(_END) + int(found[1]):
        chunk = connection.recv(65536)
        if not chunk or not received.startswith(b"HTTP/1.1 200"[: len(received)]):
            raise RuntimeError(f"the server answered {(received + chunk)[:200]!r}")
        received += chunk


def _get(host: str, port: int, path: str) -> None:
    connection = getattr(_KEPT, f"port{port}", None)
    if connection is None:
        connection = http.client.HTTPConnection(host, port, timeout=60)
        setattr(_KEPT, f"port{port}", connection)
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} was answered {answer.status}: {content[:200]!r}")


if __name__ == "__main__":
    serve({"latencies": latencies, "throughput": throughput, "rate": rate})
