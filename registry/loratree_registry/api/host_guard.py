"""Which Host headers the server answers to."""

import re
from collections.abc import Collection
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from loratree_registry.api.handlers import path_of, respond
from loratree_registry.api.problem import problem

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::[0-9]*)?")
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class HostGuard:
    """Refuses requests for another host name: a web page may point its own name at 127.0.0.1 (DNS rebinding).

    There is no access control yet, so this is what keeps a page in the owner's browser from reading the registry.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 421 by itself."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        host = request.headers.get("host", "")
        if len(request.headers.getlist("host")) == 1 and _name(host) in self.hosts:
            await self.app(scope, receive, send)
            return
        names = ", ".join(sorted(self.hosts))
        detail = f"this server does not answer to the host {host[:80]!r}: expected one of {names}"
        document = problem("misdirected-request", "Misdirected request", 421, detail, path_of(request))
        await respond(document)(scope, receive, send)


def _name(host: str) -> str | None:
    """The host without its port; an IPv6 address keeps its brackets. None where it is not a host."""
    match = _HOST.fullmatch(host)
    return match[1].lower() if match else None
