"""A server or a store that stops: it is told in a bounded time, in one sentence, and what has arrived stays."""

import contextlib
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest

from loratree_registry.blobs.store import PART
from loratree_registry.core.uploads import Part
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import Unavailable
from loratree_registry.remote import http, presigned
from loratree_registry.remote.presigned import Presigned
from loratree_registry.remote.registry import RemoteRegistry
from loratree_registry.workspace.fetch import fetch
from tests.registry.conftest import Storage
from tests.registry.fresh import open_fresh
from tests.registry.material import Material, publish, sha256

STALL_S = 0.5
SLACK_S = 10.0
MED = "tiny/medicine"


def shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class Relay:
    """A connection to a server that may stop: it takes `upward` bytes from all clients, and gives `downward` bytes.

    Then it stays open and moves nothing, as a machine does that hangs, until `go_on`. One that was stopped stays so.
    """

    def __init__(self, port: int) -> None:
        self._port, self._opened = port, ExitStack()
        self.upward = self.downward = 2**62
        self.listening = self._opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        # A small buffer, so that few bytes stand in it when the relay stops.
        self.listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def go_on(self) -> None:
        self.upward = self.downward = 2**62

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._opened.enter_context(self.listening.accept()[0])
                server = self._opened.enter_context(socket.create_connection(("127.0.0.1", self._port)))
                for end in (client, server):  # which wakes the threads that wait for it
                    self._opened.callback(shut, end)
                for name, source, target in (("upward", client, server), ("downward", server, client)):
                    threading.Thread(target=self._move, args=(name, source, target), daemon=True).start()

    def _move(self, name: str, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while (left := getattr(self, name)) > 0 and (chunk := source.recv(min(left, 65536))):
                setattr(self, name, left - len(chunk))
                target.sendall(chunk)
            if left > 0:
                target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self._opened.close()


@pytest.fixture
def behind(storage: Storage) -> Iterator[EmbeddedRegistry]:
    registry = open_fresh(storage.settings())
    yield registry
    registry.close()


@pytest.fixture
def relay(behind: EmbeddedRegistry, storage: Storage) -> Iterator[Relay]:
    with closing(Relay(httpx.URL(storage.served().over(behind, storage.folder)).port or 0)) as relay:
        yield relay


@pytest.fixture
def remote(relay: Relay) -> Iterator[RemoteRegistry]:
    registry = RemoteRegistry(relay.url, answer_s=STALL_S, stall_s=STALL_S)
    yield registry
    registry.close()


def seconds_to_refuse(registry: RemoteRegistry, content: bytes, sentence: str) -> float:
    start = time.monotonic()
    with pytest.raises(Unavailable, match=sentence):
        registry.upload(io.BytesIO(content), sha256=sha256(content), size=len(content))
    return time.monotonic() - start


def test_a_server_that_stops_reading_is_told_and_the_parts_that_arrived_stay(
    relay: Relay, remote: RemoteRegistry, behind: EmbeddedRegistry, storage: Storage
) -> None:
    content = os.urandom(1024) * (PART // 1024 + 8 * 1024)  # 72 MiB: the second part is 8 MiB
    relay.upward = PART + 1024**2
    took = f"the registry at {relay.url} (took no byte for 0.5 s: .* run the same command again|did not answer in time)"
    assert seconds_to_refuse(remote, content, took) < 3 * 4 * STALL_S + SLACK_S
    parts = [path.name for path in (storage.folder / "uploads").rglob("part-*")]
    assert parts == ["part-1"]
    relay.go_on()
    with closing(RemoteRegistry(relay.url)) as again:
        again.upload(io.BytesIO(content), sha256=sha256(content), size=len(content))
    assert behind._blobs.size(sha256(content)) == len(content)


@pytest.mark.parametrize("taken", [0, 100, 500])
def test_a_server_that_stops_before_it_answers_is_told(relay: Relay, remote: RemoteRegistry, taken: int) -> None:
    relay.upward = taken
    assert seconds_to_refuse(remote, b"small", "did not answer in time") < 3 * 4 * STALL_S + SLACK_S


def test_a_download_that_stops_is_given_up_and_leaves_nothing(
    relay: Relay, remote: RemoteRegistry, behind: EmbeddedRegistry, material: Material, tmp_path: Path
) -> None:
    behind.add_base("tiny", material.base)
    file = publish(behind, MED, material.rank8).version.files[0]
    relay.downward = 2000
    start = time.monotonic()
    with pytest.raises(Unavailable, match="did not answer in time"):
        fetch(remote, tmp_path, f"{MED}@1", file)
    assert time.monotonic() - start < 6 * STALL_S + 3 + SLACK_S  # five times it is asked for the rest, with pauses
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    relay.go_on()
    with closing(RemoteRegistry(relay.url)) as again:
        assert fetch(again, tmp_path, f"{MED}@1", file).read_bytes() == material.rank8.weights


def test_a_store_that_stops_reading_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = httpx.Timeout(60.0, connect=5.0, write=STALL_S).as_dict()
    monkeypatch.setattr(presigned, "_TIMEOUT", quick)
    with socket.create_server(("127.0.0.1", 0)) as silent, closing(Presigned()) as client:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/key"
        part = Part(number=1, url=url, headers={"Content-Length": str(PART)})
        start = time.monotonic()
        with pytest.raises(Unavailable, match=r"does not serve it .*timed out"):
            client.put(part, io.BytesIO(bytes(PART)))
        assert time.monotonic() - start < STALL_S + SLACK_S


def test_the_times_that_the_documentation_promises() -> None:
    assert (http.STALL_S, http.ANSWER_S, http.PART_S, http.WORK_S) == (30.0, 30.0, 60.0, 120.0)
    assert presigned._TIMEOUT["write"] == 30.0
    assert http.work_s(0) == 120.0
    assert http.work_s(2**70) < 100_000
