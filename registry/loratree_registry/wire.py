"""Requests to one loratree server, its answers as records, its failures as our errors."""

import io
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from typing import Any, BinaryIO, Final, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from loratree_registry.addresses import shown
from loratree_registry.api.problem import MEDIA_TYPE, Problem, error_of
from loratree_registry.errors import Invalid, LoratreeError, Unavailable

T = TypeVar("T")

ANSWER_S: Final = 30.0
WORK_S: Final = 600.0  # where the server reads and hashes whole files before it answers
_CONNECT_S = 5.0
_TRIES = 3
_IDLE_S = 5.0  # less than the server's 30 s, so that a connection is never reused while the server closes it
_CHUNK = 256 * 1024


class Wire:
    """A client of the server at `url`. Connecting is tried again; of requests, those that only read.

    An answer is waited for `answer_s` seconds, and WORK_S where the server reads or hashes whole files for it.
    """

    def __init__(self, url: str, *, answer_s: float = ANSWER_S) -> None:
        self._url, self._answer_s = _checked_url(url), answer_s
        self.url = shown(self._url)  # for messages
        secure = self._url.startswith("https:")  # reading the certificates takes 50 ms, which http: does not need
        limits = httpx.Limits(keepalive_expiry=_IDLE_S)
        self._client = httpx.Client(transport=httpx.HTTPTransport(verify=secure, retries=2, limits=limits))

    def get(self, kind: type[T], noun: str, path: str | None = None, **query: str | int | list[str] | None) -> T:
        """Reads a record of type `kind`; a query of None is left out, one of a list is there once for each text."""
        return self._parsed(kind, self._send(self._request("GET", noun, path, query)))

    def send(
        self,
        kind: type[T],
        method: str,
        noun: str,
        path: str | None = None,
        *,
        record: Any,
        seconds: float | None = None,
    ) -> T:
        """Sends a record as JSON and reads one of type `kind`."""
        request = self._request(method, noun, path, content=_json(record), seconds=seconds)
        request.headers["Content-Type"] = "application/json"
        return self._parsed(kind, self._send(request))

    def delete(self, noun: str, path: str, **query: str | int | None) -> None:
        """Removes what is at `path`."""
        self._send(self._request("DELETE", noun, path, query))

    def put_bytes(self, noun: str, path: str, chunks: Iterator[bytes], size: int) -> None:
        """Sends `size` bytes as they come."""
        request = self._request(
            "PUT", noun, path, content=chunks, seconds=WORK_S, headers={"Content-Length": str(size)}
        )
        self._send(request)

    @contextmanager
    def open(self, noun: str, path: str, **query: str) -> Iterator[BinaryIO]:
        """Opens an answer's bytes as a stream that cannot seek."""
        request = self._request("GET", noun, path, query, headers={"Accept-Encoding": "identity"})
        response = self._send(request, stream=True)
        try:
            with io.BufferedReader(_Body(self, response), _CHUNK) as stream:
                yield stream
        finally:
            response.close()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

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
            if response.is_success:
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


class _Body(io.RawIOBase):
    """The body of an answer as a file, whose failures are Unavailable."""

    def __init__(self, wire: Wire, response: httpx.Response) -> None:
        self._wire, self._chunks, self._rest = wire, response.iter_raw(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._wire.failures():
            chunk = self._rest or next(self._chunks, b"")
        count = min(len(chunk), len(buffer))
        buffer[:count], self._rest = chunk[:count], chunk[count:]
        return count


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
        raise Invalid(f"LORATREE_URL is {shown(text)!r}: expected a URL such as http://127.0.0.1:8321, without a query")
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
