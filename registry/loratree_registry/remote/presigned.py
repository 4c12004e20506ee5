"""Requests to URLs that a registry has signed: whoever sees one may use it, so none is logged or shown.

They go through httpx's transport and not through its client, which logs every URL, and carry the headers told alone.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import IO, BinaryIO, Final

import httpx

from loratree_registry.blobs.streams import opened
from loratree_registry.core.uploads import Part
from loratree_registry.errors import Invalid, LoratreeError, Unavailable

_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0).as_dict()
_IDLE_S: Final = 5.0
_CHUNK = 1024 * 1024
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,60})</Code>")
_OTHER_BYTES = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")


class Presigned:
    """A client of whatever server presigned URLs lead to; for many threads at once."""

    def put(self, part: Part, content: IO[bytes]) -> None:
        """Sends a part's bytes from where they lie. Raises Unavailable, and Invalid where they are others."""
        request = _request("PUT", part.url, part.headers, iter(lambda: content.read(_CHUNK), b""))
        with self._answered(request, (200, 201, 204)) as response:
            response.read()

    @contextmanager
    def open(self, url: str, *, start: int = 0) -> Iterator[BinaryIO]:
        """Opens what a URL leads to from byte `start`, as a stream that cannot seek. Raises Unavailable."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        request = _request("GET", url, headers)
        with (
            self._answered(request, (206 if start else 200,)) as response,
            opened(response.iter_raw(), lambda: _failures(request)) as stream,
        ):
            yield stream

    def close(self) -> None:
        """Closes the connections, if any were opened."""
        if "_transport" in self.__dict__:
            self._transport.close()

    @cached_property
    def _transport(self) -> httpx.HTTPTransport:
        return httpx.HTTPTransport(retries=2, limits=httpx.Limits(keepalive_expiry=_IDLE_S))

    @contextmanager
    def _answered(self, request: httpx.Request, expected: tuple[int, ...]) -> Iterator[httpx.Response]:
        with _failures(request):
            response = self._transport.handle_request(request)
        try:
            if response.status_code not in expected:
                with _failures(request):
                    response.read()
                raise _refusal(request, response)
            yield response
        finally:
            response.close()


def _request(
    method: str, url: str, headers: Mapping[str, str], content: Iterator[bytes] | None = None
) -> httpx.Request:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise Unavailable("the registry gave a URL that is none: check the release that it runs") from error
    return httpx.Request(method, parsed, headers=headers, content=content, extensions={"timeout": _TIMEOUT})


@contextmanager
def _failures(request: httpx.Request) -> Iterator[None]:
    """Turns what the network does inside the block into Unavailable, which tells the server alone."""
    try:
        yield
    except httpx.HTTPError as error:
        raise _unavailable(request, str(error) or type(error).__name__) from error


def _refusal(request: httpx.Request, response: httpx.Response) -> LoratreeError:
    found = _CODE.search(response.content)
    code = found[1].decode() if found else ""
    if code in _OTHER_BYTES:
        return Invalid(f"the bytes sent to {_server(request)} are not those announced ({code}): send them again")
    return _unavailable(request, f"it answered {response.status_code} {code}".rstrip())


def _unavailable(request: httpx.Request, reason: str) -> Unavailable:
    return Unavailable(
        f"the store at {_server(request)}, where the registry sends its clients, does not serve this one ({reason}): "
        "try again, or set LORATREE_DIRECT=0 where the registry is served"
    )


def _server(request: httpx.Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc.decode()}"
