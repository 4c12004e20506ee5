"""A real uvicorn server in a thread, over whichever registry a test puts behind it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from loratree_registry.api.app import create_app
from loratree_registry.api.connections import HttpProtocol
from loratree_registry.api.serve import listen
from loratree_registry.embedded.registry import EmbeddedRegistry


@dataclass
class Served:
    """A running server: its URL, and the application, whose registry and staging folder a test replaces."""

    url: str
    app: FastAPI

    def over(self, registry: EmbeddedRegistry, folder: Path) -> str:
        """Puts `registry` behind the server and returns the URL."""
        self.app.state.registry = registry
        self.app.state.staging = folder / "uploads"
        return self.url


class Nothing:
    """Stands for the registry before a test has put one there, and is closed with the server."""

    direct = None

    def close(self) -> None:
        """Holds nothing."""


@contextmanager
def served() -> Iterator[Served]:
    """Starts a server on a free port and stops it at the end."""
    app = create_app(Nothing(), staging=Path("unused"))  # type: ignore[arg-type]
    with running(app) as url:
        yield Served(url, app)


@contextmanager
def running(app: ASGIApp, protocol: Any = HttpProtocol) -> Iterator[str]:
    """Runs any ASGI application on a free port of this machine and gives its URL."""
    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(app, log_level="critical", ws="none", lifespan="auto", http=protocol)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def command_serving(home: Path) -> Iterator[str]:
    """Runs the command `loratree serve` over `home` in a process of its own, with no other setting; gives its URL."""
    command = [sys.executable, "-m", "loratree_cli", "serve", "--port", "0", "--log-level", "warning"]
    settings = {name: value for name, value in os.environ.items() if not name.startswith("LORATREE_")}
    settings |= {"LORATREE_HOME": str(home)}
    with subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=20)


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that gives every connection the same answer; yields its URL and what it was asked."""
    asked: list[bytes] = []

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection, suppress(OSError):  # a client may leave before the answer
                connection.settimeout(10)
                asked.append(connection.recv(65536))
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(10)
