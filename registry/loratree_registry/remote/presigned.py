"""Requests to presigned URLs: anyone who sees such a URL can use it, so no URL is logged or shown.

They use httpx's transport, because httpx's client logs every URL, and they carry only the given headers.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import IO, BinaryIO, Final

import httpx

from loratree_registry.blobs.streams import opened
from loratree_registry.core.uploads import Part
from loratree_registry.errors import Invalid, LoratreeError, NotFound, Unavailable

_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0, write=30.0).as_dict()  # each without a byte that moves
_IDLE_S: Final = 5.0
_CHUNK = 1024 * 1024
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,60})</Code>")
_ENDED = ("NoSuchUpload", "NoSuchKey")  # Ceph answers NoSuchKey
_OTHER_BYTES = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch")


class Presigned:
    """A client of the servers that presigned URLs name; it is thread-safe."""

    def put(self, part: Part, content: IO[bytes]) -> None:
        """Send a part's bytes. Raises Unavailable, NotFound if the upload has ended, Invalid if the bytes are wrong."""
        request = _build_request("PUT", part.url, part.headers, iter(lambda: content.read(_CHUNK), b""))
        with self._send(request, (200, 201, 204)) as response:
            response.read()

    @contextmanager
    def open(self, url: str, *, start: int = 0) -> Iterator[BinaryIO]:
        """Open the bytes at a URL from byte `start`, as a stream that cannot seek. Raises Unavailable."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        request = _build_request("GET", url, headers)
        with (
            self._send(request, (206 if start else 200,)) as response,
            opened(response.iter_raw(), lambda: _catch_failures(request)) as stream,
        ):
            yield stream

    def close(self) -> None:
        """Close the connections, if any were opened."""
        if "_transport" in self.__dict__:
            self._transport.close()

    @cached_property
    def _transport(self) -> httpx.HTTPTransport:
        return httpx.HTTPTransport(retries=2, limits=httpx.Limits(keepalive_expiry=_IDLE_S))

    @contextmanager
    def _send(self, request: httpx.Request, expected: tuple[int, ...]) -> Iterator[httpx.Response]:
        with _catch_failures(request):
            response = self._transport.handle_request(request)
        try:
            if response.status_code not in expected:
                with _catch_failures(request):
                    response.read()
                raise _to_error(request, response)
            yield response
        finally:
            response.close()


def _build_request(
    method: str, url: str, headers: Mapping[str, str], content: Iterator[bytes] | None = None
) -> httpx.Request:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:  # which quotes the URL
        raise Unavailable("the registry sent an invalid URL: check the release that it runs") from None
    return httpx.Request(method, parsed, headers=headers, content=content, extensions={"timeout": _TIMEOUT})


@contextmanager
def _catch_failures(request: httpx.Request) -> Iterator[None]:
    """Turn a network error inside the block into Unavailable; the message names the server, not the URL."""
    try:
        yield
    except httpx.HTTPError as error:
        raise _to_unavailable(request, str(error) or type(error).__name__) from error


def _to_error(request: httpx.Request, response: httpx.Response) -> LoratreeError:
    match = _CODE.search(response.content)
    code = match[1].decode() if match else ""
    if code in _OTHER_BYTES:
        return Invalid(f"the bytes sent to {_server_of(request)} are not those announced ({code}): send them again")
    if request.method == "PUT" and code in _ENDED:
        return NotFound(f"the upload to {_server_of(request)} has ended there ({code}): begin a new one")
    return _to_unavailable(request, f"it answered {response.status_code} {code}".rstrip())


def _to_unavailable(request: httpx.Request, reason: str) -> Unavailable:
    return Unavailable(
        f"the registry sent this client to the store at {_server_of(request)}, which does not serve it ({reason}): "
        "try again, or set LORATREE_DIRECT=0 on the registry's server"
    )


def _server_of(request: httpx.Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc.decode()}"
