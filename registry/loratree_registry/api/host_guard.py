"""The guard before every route: it checks the Host header, the origin of every write, and where the body ends."""

import re
from collections.abc import Collection
from typing import Final

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from loratree_registry.api.handlers import path_of, respond
from loratree_registry.wire.problem import Problem, ambiguous_length, cross_site, misdirected

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::[0-9]*)?")
_READS = ("GET", "HEAD", "OPTIONS")
HEAD: Final = "loratree.head"  # the key in a scope that says that the client asked for the headers alone
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})


class HostGuard:
    """A middleware that refuses requests for another host name, and writes from another site's page.

    A web page can point its own name at 127.0.0.1 (DNS rebinding), or send a form to 127.0.0.1 directly. There is no
    access control yet, so only this guard keeps a page in the owner's browser from reading or writing the registry.

    A HEAD goes on as a GET with the key HEAD in its scope, so every GET route answers it with the same headers. The
    server sends no body for it, and a route whose body is expensive looks at the key.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with 400, 421 or 403."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        names = [name for name, _ in headers]
        if b"transfer-encoding" in names and b"content-length" in names:
            # Two servers may see its end at two places, so what follows on this connection cannot be trusted.
            problem = ambiguous_length(scope["method"], path_of(Request(scope)))
            await respond(problem, {"Connection": "close"})(scope, receive, send)
        elif (refusal := self._check(scope)) is not None:
            await respond(refusal)(scope, receive, send)
        elif scope["method"] == "HEAD":
            await self.app({**scope, "method": "GET", HEAD: True}, receive, send)
        else:
            await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> Problem | None:
        given = [value for name, value in scope["headers"] if name == b"host"]
        host = given[0].decode("latin-1") if given else ""
        if len(given) != 1 or _host_name(host) not in self.hosts:
            return misdirected(host, ", ".join(sorted(self.hosts)), path_of(Request(scope)))
        if scope["method"] not in _READS and (origin := _find_other_site(Request(scope), host)) is not None:
            return cross_site(origin, path_of(Request(scope)))
        return None


def _find_other_site(request: Request, host: str) -> str | None:
    """Return the other site that sent the request, or None. Browsers set these headers and pages cannot change them."""
    for origin in request.headers.getlist("origin"):
        if origin.lower().partition("://")[2] != host.lower():
            return origin
    for site in request.headers.getlist("sec-fetch-site"):
        if site not in ("same-origin", "none"):
            return site
    return None


def _host_name(host: str) -> str | None:
    """Return the host without its port, or None if it is not a host; an IPv6 address keeps its brackets."""
    match = _HOST.fullmatch(host)
    return match[1].lower() if match else None
