"""Requests to one loratree server, its answers as records, its failures as our errors."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import cache
from typing import IO, Any, BinaryIO, Final, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from loratree_registry.blobs.streams import opened
from loratree_registry.core.text import without_secrets
from loratree_registry.core.uploads import Part
from loratree_registry.errors import Invalid, LoratreeError, Unavailable
from loratree_registry.remote.presigned import Presigned
from loratree_registry.wire.problem import MEDIA_TYPE, Problem, error_of

T = TypeVar("T")

ANSWER_S: Final = 30.0
WORK_S: Final = 600.0  # where the server reads and hashes whole files before it answers
_CONNECT_S = 5.0
_TRIES = 3
_IDLE_S = 5.0  # less than the server's 30 s, so that a connection is never reused while the server closes it
_CHUNK = 256 * 1024
_SLOW = 20e6  # bytes a second that a server surely reads and hashes
_PARTIAL, _ELSEWHERE = 206, 307


class HttpClient:
    """A client of the server at `url`. Connecting is tried again; of requests, those that only read.

    An answer is waited for `answer_s` seconds, and WORK_S where the server reads or hashes whole files for it.
    """

    def __init__(self, url: str, *, answer_s: float = ANSWER_S) -> None:
        self._url, self._answer_s = _checked_url(url), answer_s
        self.url = without_secrets(self._url)  # for messages
        secure = self._url.startswith("https:")  # reading the certificates takes 50 ms, which http: does not need
        limits = httpx.Limits(keepalive_expiry=_IDLE_S)
        self._presigned = Presigned()
        self._client = httpx.Client(transport=httpx.HTTPTransport(verify=secure, retries=2, limits=limits))

    def get(
        self,
        kind: type[T],
        noun: str,
        path: str | None = None,
        *,
        seconds: float | None = None,
        **query: str | int | list[str] | None,
    ) -> T:
        """Reads a record of type `kind`; a query of None is left out, one of a list is there once for each text."""
        return self._parsed(kind, self._send(self._request("GET", noun, path, query, seconds=seconds)))

    def send(
        self,
        kind: type[T],
        method: str,
        noun: str,
        path: str | None = None,
        *,
        record: Any,
        seconds: float | None = None,
        **query: str | int | None,
    ) -> T:
        """Sends a record as JSON and reads one of type `kind`."""
        request = self._request(method, noun, path, query, content=_json(record), seconds=seconds)
        request.headers["Content-Type"] = "application/json"
        return self._parsed(kind, self._send(request))

    def delete(self, noun: str, path: str, **query: str | int | None) -> None:
        """Removes what is at `path`."""
        self._send(self._request("DELETE", noun, path, query))

    def put_part(self, part: Part, content: IO[bytes]) -> None:
        """Sends a part of an upload to this server, or to the other one that its URL leads to."""
        if not part.url.startswith("/v1/"):
            self._presigned.put(part, content)
            return
        noun, _, path = part.url.removeprefix("/v1/").partition("/")
        chunks = iter(lambda: content.read(_CHUNK), b"")
        self._send(self._request("PUT", noun, path, content=chunks, seconds=WORK_S, headers=part.headers))

    @contextmanager
    def open(self, noun: str, path: str, *, start: int = 0, **query: str) -> Iterator[BinaryIO]:
        """Opens an answer's bytes from byte `start`, here or where the server sends us; the stream cannot seek."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        response = self._send(self._request("GET", noun, path, query, headers=headers), stream=True)
        with closing(response):
            if (response.status_code == _PARTIAL) != (start > 0) and response.status_code != _ELSEWHERE:
                raise self._stranger(response)
            if response.status_code != _ELSEWHERE:
                with opened(response.iter_raw(), self.failures) as stream:
                    yield stream
                return
        with self._presigned.open(response.headers["Location"], start=start) as stream:
            yield stream

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()
        self._presigned.close()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turns what the network does inside the block into Unavailable."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise Unavailable(
                f"the registry at {self.url} did not answer in time: try again when it is less busy"
            ) from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(
                f"the registry at {self.url} cannot be reached ({reason}): "
                "check LORATREE_URL, and that `loratree serve` is running there"
            ) from error

    def _request(
        self,
        method: str,
        noun: str,
        path: str | None,
        query: Mapping[str, str | int | list[str] | None] | None = None,
        *,
        content: bytes | Iterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> httpx.Request:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        timeout = httpx.Timeout(seconds or self._answer_s, connect=_CONNECT_S)
        try:
            url = httpx.URL(f"{self._url}/v1/{noun}" + ("" if path is None else f"/{quoted(path)}"), params=given)
        except (httpx.InvalidURL, ValueError) as error:
            raise Invalid(f"{path!r} cannot be asked for over HTTP: {error}") from error
        return self._client.build_request(method, url, content=content, headers=headers, timeout=timeout)

    def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        with self.failures():
            response = self._tried(request, stream=stream)
            if response.is_success or (
                stream and response.status_code == _ELSEWHERE and "Location" in response.headers
            ):
                return response
            try:
                response.read()
            finally:
                response.close()
        raise self._refusal(response)

    def _tried(self, request: httpx.Request, *, stream: bool) -> httpx.Response:
        """Sends a request; one that only reads is sent again where the connection broke."""
        for attempt in range(1, _TRIES):
            try:
                return self._client.send(request, stream=stream)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                if request.method != "GET":
                    raise
                time.sleep(0.1 * attempt)
        return self._client.send(request, stream=stream)

    def _parsed(self, kind: type[T], response: httpx.Response) -> T:
        try:
            record: T = _adapter(kind).validate_json(response.content, strict=True)  # type: ignore[arg-type] # a class is hashable
        except ValidationError as error:
            raise self._stranger(response) from error
        return record

    def _refusal(self, response: httpx.Response) -> LoratreeError:
        if response.headers.get("Content-Type", "").startswith(MEDIA_TYPE):
            try:
                return error_of(_adapter(Problem).validate_json(response.content, strict=True))
            except ValidationError:
                pass
        return self._stranger(response)

    def _stranger(self, response: httpx.Response) -> Unavailable:
        return Unavailable(
            f"the server at {self.url} answered {response.status_code} and not as a loratree registry does: "
            "check LORATREE_URL, and that `loratree serve` of this release is running there"
        )


def work_s(size: int) -> float:
    """How long to wait for a server that reads and hashes `size` bytes, in seconds."""
    return WORK_S + size / _SLOW


def quoted(path: str) -> str:
    """Percent-encodes what would end the path, and segments of dots, which clients and proxies resolve."""
    segments = quote(path, safe="/@:").split("/")
    return "/".join(segment.replace(".", "%2E") if set(segment) == {"."} else segment for segment in segments)


def _checked_url(text: str) -> str:
    """The URL without its last slash. Raises Invalid where it is not one that HTTP can reach."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535 or url.query or url.fragment:
        raise Invalid(
            f"LORATREE_URL is {without_secrets(text)!r}: expected a URL such as http://127.0.0.1:8321, without a query"
        )
    return text.rstrip("/")


def _json(record: Any) -> bytes | None:
    """A record as JSON; what JSON has no form for but the registry refuses by name, such as NaN, is sent as it is."""
    if record is None:
        return None
    try:
        return json.dumps(asdict(record)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"the request has no form in JSON: {error}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
