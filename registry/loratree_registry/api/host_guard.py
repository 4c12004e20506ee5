"""Which hosts the server answers to, and whose pages may write."""

import re
from collections.abc import Collection
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from loratree_registry.api.handlers import path_of, respond
from loratree_registry.wire.problem import Problem, cross_site, misdirected

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::[0-9]*)?")
_READS = ("GET", "HEAD", "OPTIONS")
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class HostGuard:
    """Refuses requests for another host name, and writes that another site's page sends.

    A web page may point its own name at 127.0.0.1 (DNS rebinding), or send a form there as it is. There is no access
    control yet, so this is what keeps a page in the owner's browser from reading the registry or writing to it.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 421 by itself."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(Request(scope))
        await (self.app if refusal is None else respond(refusal))(scope, receive, send)

    def _refusal(self, request: Request) -> Problem | None:
        host = request.headers.get("host", "")
        if len(request.headers.getlist("host")) != 1 or _name(host) not in self.hosts:
            return misdirected(host, ", ".join(sorted(self.hosts)), path_of(request))
        if request.method not in _READS and (origin := _other_site(request, host)) is not None:
            return cross_site(origin, path_of(request))
        return None


def _other_site(request: Request, host: str) -> str | None:
    """Where the page came from that sent a request, if from elsewhere: browsers say it and pages cannot change it."""
    for origin in request.headers.getlist("origin"):
        if origin.lower().partition("://")[2] != host.lower():
            return origin
    for site in request.headers.getlist("sec-fetch-site"):
        if site not in ("same-origin", "none"):
            return site
    return None


def _name(host: str) -> str | None:
    """The host without its port; an IPv6 address keeps its brackets. None where it is not a host."""
    match = _HOST.fullmatch(host)
    return match[1].lower() if match else None
