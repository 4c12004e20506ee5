"""Requests to one loratree server: its answers become records, its failures become loratree's errors."""

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
STALL_S: Final = 30.0  # how long a peer may take no byte of what is sent
PART_S: Final = 60.0  # for the answer to a part, which the server has only written to its disk
WORK_S: Final = 120.0  # for a request that makes the server read and hash files, beside the time for their bytes
LONG_S: Final = 600.0  # for a request that makes the server read or delete as much as there is
_CONNECT_S = 5.0
_TRIES = 3
_IDLE_S = 5.0  # less than the server's 30 s, so that a connection is never reused while the server closes it
_CHUNK = 256 * 1024
_MOST_S: Final = 24 * 3600.0  # a size may be any number
_SLOW = 20e6  # bytes a second that even a slow server reads and hashes
MAX_ANSWER: Final = 128 * 1024 * 1024  # bytes of one JSON answer; a manifest of 36,864 tensors has 10 MiB
_KEPT: Final = ("Content-Type", "Location")  # headers that are read
_PARTIAL, _ELSEWHERE = 206, 307


class HttpClient:
    """A client of the server at `url`. It retries to connect, and retries requests that only read.

    It waits `answer_s` seconds for an answer, or longer if the server must read or hash whole files first, and
    `stall_s` seconds while the server takes no byte of a request.
    """

    def __init__(self, url: str, *, answer_s: float = ANSWER_S, stall_s: float = STALL_S) -> None:
        checked = _check_url(url)
        # httpx logs each URL, so a password is sent as a header and is in no URL.
        auth = (checked.username, checked.password) if checked.userinfo else None
        self._url, self._answer_s = str(checked.copy_with(username="", password="")).rstrip("/"), answer_s
        self._stall_s = stall_s
        self.url = without_secrets(self._url)  # for messages
        secure = self._url.startswith("https:")  # loading certificates takes 50 ms, and http: needs none
        limits = httpx.Limits(keepalive_expiry=_IDLE_S)
        self._presigned = Presigned()
        self._client = httpx.Client(auth=auth, transport=_open_transport(secure, limits))

    def get(
        self,
        kind: type[T],
        noun: str,
        path: str | None = None,
        *,
        seconds: float | None = None,
        **query: str | int | list[str] | None,
    ) -> T:
        """Read a record of type `kind`. A query of None is left out; a query of a list is sent once for each text."""
        return self._parse(kind, self._send(self._build_request("GET", noun, path, query, seconds=seconds)))

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
        """Send a record as JSON and read a record of type `kind`."""
        request = self._build_request(method, noun, path, query, content=_to_json(record), seconds=seconds)
        request.headers["Content-Type"] = "application/json"
        return self._parse(kind, self._send(request))

    def delete(self, noun: str, path: str, **query: str | int | None) -> None:
        """Delete the resource at `path`."""
        self._send(self._build_request("DELETE", noun, path, query))

    def put_part(self, part: Part, content: IO[bytes]) -> None:
        """Send a part of an upload to this server, or to another server that the part's URL names."""
        if not part.url.startswith("/v1/"):
            self._presigned.put(part, content)
            return
        noun, _, path = part.url.removeprefix("/v1/").partition("/")
        chunks = iter(lambda: content.read(_CHUNK), b"")
        seconds = PART_S * self._answer_s / ANSWER_S
        self._send(self._build_request("PUT", noun, path, content=chunks, seconds=seconds, headers=part.headers))

    @contextmanager
    def open(self, noun: str, path: str, *, start: int = 0, **query: str) -> Iterator[BinaryIO]:
        """Open an answer's bytes from byte `start`, and follow a redirect; the stream cannot seek."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        response = self._send(self._build_request("GET", noun, path, query, headers=headers), stream=True)
        with closing(response):
            if (response.status_code == _PARTIAL) != (start > 0) and response.status_code != _ELSEWHERE:
                raise self._to_unavailable(response)
            if response.status_code != _ELSEWHERE:
                with opened(response.iter_raw(), self.failures) as stream:
                    yield stream
                return
        with self._presigned.open(response.headers["Location"], start=start) as stream:
            yield stream

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._presigned.close()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Turn a network error inside the block into Unavailable."""
        try:
            yield
        except httpx.WriteTimeout as error:
            raise Unavailable(
                f"the registry at {self.url} took no byte for {self._stall_s:g} s: check that it is well, and run the "
                "same command again, which sends what has not arrived"
            ) from error
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

    def _build_request(
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
        params = {name: value for name, value in (query or {}).items() if value is not None}
        timeout = httpx.Timeout(seconds or self._answer_s, connect=_CONNECT_S, write=self._stall_s)
        try:
            url = httpx.URL(f"{self._url}/v1/{noun}" + ("" if path is None else f"/{quoted(path)}"), params=params)
        except (httpx.InvalidURL, ValueError) as error:
            raise Invalid(f"{path!r} cannot be asked for over HTTP: {error}") from error
        return self._client.build_request(method, url, content=content, headers=headers, timeout=timeout)

    def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        with self.failures():
            response = self._send_with_retries(request, stream=stream)
            if response.is_success or (
                stream and response.status_code == _ELSEWHERE and "Location" in response.headers
            ):
                return response
            if stream:
                response = self._read(response)
        raise self._to_error(response)

    def _send_with_retries(self, request: httpx.Request, *, stream: bool) -> httpx.Response:
        """Send a request; if the connection breaks, a request that only reads is sent again."""
        for attempt in range(1, _TRIES):
            try:
                return self._send_once(request, stream=stream)
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError):
                if request.method != "GET":
                    raise
                time.sleep(0.1 * attempt)
        return self._send_once(request, stream=stream)

    def _send_once(self, request: httpx.Request, *, stream: bool) -> httpx.Response:
        response = self._client.send(request, stream=True)
        return response if stream else self._read(response)

    def _read(self, response: httpx.Response) -> httpx.Response:
        """Return the response with its content, of at most MAX_ANSWER bytes: a server may send without end."""
        content = bytearray()
        with closing(response):
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER:
                    raise Unavailable(
                        f"the answer of {self.url} is larger than {MAX_ANSWER >> 20} MiB: check the server"
                    )
        read = httpx.Response(response.status_code, content=bytes(content), request=response.request)
        read.headers.update({name: response.headers[name] for name in _KEPT if name in response.headers})
        return read

    def _parse(self, kind: type[T], response: httpx.Response) -> T:
        try:
            record: T = _adapter_of(kind).validate_json(response.content, strict=True)  # type: ignore[arg-type] # a class is hashable
        except (ValidationError, RecursionError) as error:
            raise self._to_unavailable(response) from error
        return record

    def _to_error(self, response: httpx.Response) -> LoratreeError:
        if response.headers.get("Content-Type", "").startswith(MEDIA_TYPE):
            try:
                return error_of(_adapter_of(Problem).validate_json(response.content, strict=True))
            except ValidationError:
                pass
        return self._to_unavailable(response)

    def _to_unavailable(self, response: httpx.Response) -> Unavailable:
        return Unavailable(
            f"the server at {self.url} answered {response.status_code} and not as a loratree registry does: "
            "check LORATREE_URL, and that `loratree serve` of this release is running there"
        )


def work_s(size: int) -> float:
    """Return how many seconds to wait for a server that reads and hashes `size` bytes."""
    return WORK_S + min(size / _SLOW, _MOST_S)


def quoted(path: str) -> str:
    """Percent-encode characters that would end the path, and segments of dots, which clients and proxies resolve."""
    segments = quote(path, safe="/@:").split("/")
    return "/".join(segment.replace(".", "%2E") if set(segment) == {"."} else segment for segment in segments)


def _open_transport(secure: bool, limits: httpx.Limits) -> httpx.HTTPTransport:
    try:
        return httpx.HTTPTransport(verify=secure, retries=2, limits=limits)
    except OSError as error:
        raise Unavailable(
            f"the certificates for https cannot be read ({error.strerror or error}): "
            "check SSL_CERT_FILE and SSL_CERT_DIR"
        ) from error


def _check_url(text: str) -> httpx.URL:
    """Parse the URL. Raises Invalid if HTTP cannot reach it."""
    try:
        url = httpx.URL(text)
        url.host.encode("idna")  # as the system's resolver does; a name with a label of 64 letters is none
    except (httpx.InvalidURL, UnicodeError):
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535 or url.query or url.fragment:
        raise Invalid(
            f"LORATREE_URL is {without_secrets(text)!r}: expected a URL such as http://127.0.0.1:8321, without a query"
        )
    return url


def _to_json(record: Any) -> bytes | None:
    """Return a record as JSON. NaN, which JSON lacks, is sent as it is: the registry refuses it by its name."""
    if record is None:
        return None
    try:
        return json.dumps(asdict(record)).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"the request cannot be written as JSON: {error}") from error


@cache
def _adapter_of(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
