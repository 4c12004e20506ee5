"""Many at once: threads over one registry, or over clients of two servers."""

import os
import tempfile
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
from tests.crash.child import Child


@contextmanager
def one_process(home: Path, address: str) -> Iterator[list[Registry]]:
    environment = {"LORATREE_HOME": str(home), "LORATREE_DATABASE": address}
    registry = open_embedded(Settings.from_environment(environment))
    yield [registry]
    registry.close()


@contextmanager
def two_servers(home: Path, address: str) -> Iterator[list[Registry]]:
    """Clients of two `loratree serve` over one database and one folder."""
    settings = {"LORATREE_HOME": str(home), "LORATREE_DATABASE": address}
    with ExitStack() as started:
        folder = Path(started.enter_context(tempfile.TemporaryDirectory()))
        servers = [Child(["serve", "--port", "0"], os.environ | settings, folder / str(number)) for number in range(2)]
        for server in servers:
            started.callback(server.kill)
        clients: list[Registry] = []
        for server in servers:
            clients.append(RemoteRegistry(server.first_line() or ""))
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
