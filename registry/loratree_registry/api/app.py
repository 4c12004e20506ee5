"""The application: a registry behind HTTP."""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from loratree_registry.api.document import complete_document
from loratree_registry.api.handlers import add_handlers
from loratree_registry.api.host_guard import LOOPBACK, HostGuard
from loratree_registry.api.log.requests import RequestLog
from loratree_registry.api.log.settings import LogSettings
from loratree_registry.api.routes import aliases, bases, files, health, marks, nodes, tombstones, uploads, versions
from loratree_registry.api.routes.front import add_front
from loratree_registry.core.uploads import LIFETIME_S
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.embedded.staged_uploads import expire
from loratree_registry.errors import Unavailable

ROUTERS: Final = (
    health.router,
    bases.router,
    bases.manifests,
    bases.damage,
    nodes.router,
    versions.router,
    versions.submissions,
    marks.router,
    tombstones.router,
    aliases.router,
    uploads.router,
    files.router,
)
EXPIRE_S: Final = 3600.0
_LOG: Final = logging.getLogger(__name__)


def create_app(
    registry: EmbeddedRegistry, *, staging: Path, hosts: Collection[str] = LOOPBACK, log: LogSettings | None = None
) -> FastAPI:
    """Create the application that serves `registry`, and closes it when the server stops.

    `staging` is the folder for unfinished uploads, shared by every worker. `hosts` are the accepted Host headers.
    `log` says which requests get a line on stderr; without it, none does.
    A registry's methods commit before they return, so every reply comes after its commit.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        expiring = asyncio.create_task(_expire_hourly(app))
        try:
            yield
        finally:
            expiring.cancel()
            registry.close()

    app = FastAPI(
        title="loratree registry",
        version=version("loratree"),
        description="Trees of LoRA adapters: nodes, versions, pins and aliases over one base model.",
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # the framework's own pages load scripts from another server
    )
    app.state.registry = registry
    app.state.staging = staging
    app.add_middleware(HostGuard, hosts=hosts)
    add_handlers(app)
    for router in ROUTERS:
        app.router.routes += router.routes  # include_router wraps each route, and an answer then takes twice as long
    complete_document(app)
    add_front(app)
    # Around the framework's own outermost layer, which answers for our bugs.
    app.middleware_stack = RequestLog(app.build_middleware_stack(), log)
    return app


def create_app_from_settings() -> FastAPI:
    """Create the application over the environment's embedded registry, for `uvicorn --factory` and its workers."""
    from loratree_registry.embedded.registry import open_embedded
    from loratree_registry.settings import Settings

    settings = Settings.from_environment()
    return create_app(open_embedded(settings), staging=settings.make_home() / "uploads")


async def _expire_hourly(app: FastAPI) -> None:
    """Remove staged uploads that were idle for a day, now and every hour; an announcement looks at no other upload."""
    while True:
        before = datetime.now(UTC) - timedelta(seconds=LIFETIME_S)
        try:
            await run_in_threadpool(expire, app.state.staging, before=before)
        except Unavailable as error:
            _LOG.warning("%s", error)
        await asyncio.sleep(EXPIRE_S)
