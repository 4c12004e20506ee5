"""Many at once: threads over one registry, or over clients of two servers."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from loratree_registry.core.registry import Registry
from loratree_registry.embedded.registry import open_embedded
from loratree_registry.remote.registry import RemoteRegistry
from loratree_registry.settings import Settings


@contextmanager
def one_process(home: Path, address: str) -> Iterator[list[Registry]]:
    environment = {"LORATREE_HOME": str(home), "LORATREE_DATABASE": address}
    registry = open_embedded(Settings.from_environment(environment))
    yield [registry]
    registry.close()


@contextmanager
def two_servers(home: Path, address: str) -> Iterator[list[Registry]]:
    """Clients of two `loratree serve` over one database and one folder."""
    settings = {"LORATREE_HOME": str(home), "LORATREE_DATABASE": address, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "loratree_cli", "serve", "--port", "0"]
    with ExitStack() as started:
        servers = [
            started.enter_context(
                subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        for server in servers:
            started.callback(server.terminate)
        clients: list[Registry] = []
        for server in servers:
            assert server.stdout is not None
            clients.append(RemoteRegistry(server.stdout.readline().strip()))
            started.callback(clients[-1].close)
        yield clients


def at_once(registries: list[Registry], work: Callable[[Registry, int], Any], *, many: int) -> list[Any]:
    """What `many` threads come to that all start at the same moment, the registries dealt out among them."""
    ready = threading.Barrier(many)

    def begin(dealt: tuple[int, Registry]) -> Any:
        ready.wait()
        return work(dealt[1], dealt[0])

    with ThreadPoolExecutor(many) as pool:
        return list(pool.map(begin, zip(range(many), cycle(registries))))
