"""The server process of `loratree serve`."""

import ipaddress
import logging
import socket
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from loratree_registry.api.log.settings import LogSettings
from loratree_registry.errors import Invalid, Unavailable
from loratree_registry.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp
    from uvicorn import Config

_LOG_SETTINGS: Final = LogSettings()
_LOG: Final = logging.getLogger(__name__)


def serve(
    settings: Settings,
    host: str,
    port: int,
    *,
    workers: int = 1,
    announce: Callable[[str], object] = print,
    log: LogSettings = _LOG_SETTINGS,
) -> None:
    """Serve the embedded registry of `settings` until interrupted or terminated; port 0 takes a free port.

    `workers` processes share the port; one that dies is replaced. `announce` is called with the URL once the port is
    open. `log` says what is written to stderr. Raises Invalid for a host that is not loopback, since there is no access
    control yet, and Unavailable if the port is in use or a worker cannot start.
    """
    name = _check_loopback(host)
    try:
        import uvicorn  # noqa: F401  # if it is missing, that is said before the port is taken

        from loratree_registry.api.host_guard import LOOPBACK
    except ImportError as error:
        raise Unavailable(f"serving needs {error.name}, which is not installed: install loratree[server]") from error
    from loratree_registry.embedded.registry import open_embedded

    with listen(host, port) as listening:
        open_embedded(settings).close()  # migrates SQLite, and raises here if no worker could open it
        config = configure(partial(_create_app, settings, LOOPBACK | {name}, log), workers=workers, log=log)
        url = f"http://{name}:{listening.getsockname()[1]}"
        announce(url)
        _LOG.info("loratree %s serves %s, workers: %d", version("loratree"), url, workers)
        try:
            _run(config, listening)
        finally:  # Ctrl-C, SIGTERM, or a worker that cannot start
            _LOG.info("loratree %s stops: %s is no longer served", version("loratree"), url)


def _run(config: "Config", listening: socket.socket) -> None:
    """Serve on `listening` until interrupted or terminated. Raises Unavailable if a worker cannot start."""
    if config.workers > 1:
        from loratree_registry.api.workers import serve_by_many

        serve_by_many(config, listening)
        return
    import uvicorn

    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def configure(create_app: Callable[[], "ASGIApp"], *, workers: int = 1, log: LogSettings = _LOG_SETTINGS) -> "Config":
    """Return the settings of uvicorn; each worker calls `create_app`. It uses uvloop and httptools where they are."""
    import uvicorn

    return uvicorn.Config(
        create_app,
        factory=True,
        workers=workers,
        log_config=log.to_config(),
        loop="auto",
        http="loratree_registry.api.connections:HttpProtocol",
        ws="none",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_worker_healthcheck=60,  # seconds: a busy machine starts a worker slowly
    )


def _create_app(settings: Settings, hosts: Collection[str], log: LogSettings) -> "FastAPI":
    from loratree_registry.api.app import create_app
    from loratree_registry.api.log.once_per_kind import quieten
    from loratree_registry.embedded.registry import open_embedded

    quieten()
    return create_app(open_embedded(settings), staging=settings.make_home() / "uploads", hosts=hosts, log=log)


def _check_loopback(host: str) -> str:
    """Check that `host` is a loopback address, and return it as a URL writes it. Raises Invalid."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise Invalid(f"host {host!r} is not an address: give 127.0.0.1, ::1 or localhost") from error
    if not address.is_loopback:
        raise Invalid(
            f"host {host} would offer the registry to other machines, and it has no access control yet: "
            "give 127.0.0.1, ::1 or localhost"
        )
    return f"[{address}]" if address.version == 6 else host


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 takes a free port. Raises Unavailable if the port is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise Unavailable(f"port {port} of {host} cannot be taken ({error.strerror}): give another --port") from error
    # asyncio sets this only on sockets that name their protocol; without it each answer waits 40 ms for an ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
