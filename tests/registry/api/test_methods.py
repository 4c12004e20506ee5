"""HEAD, Allow, If-Range and the end of a body: what HTTP asks of every route."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute

from loratree_registry.api.app import ROUTERS
from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.embedded.registry import EmbeddedRegistry
from tests.registry.conftest import Storage
from tests.registry.fresh import open_fresh
from tests.registry.material import WEIGHTS, Material, break_reads, publish, sha256
from tests.registry.serving import Served

from .conftest import MED
from .test_problems import problem

GETS = sorted(
    route.path
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and "GET" in route.methods
)
VARYING = {"date", "x-request-id"}


@pytest.fixture
def upload(http: httpx.Client) -> str:
    return http.post("/v1/uploads", json={"sha256": sha256(b"x"), "size": 1}).json()["id"]


@pytest.mark.parametrize("path", [*GETS, "/openapi.json", "/docs", "/v1/nodes/tiny/nowhere", "/v2/none"])
@pytest.mark.parametrize("held", [False, True])
def test_head_answers_the_headers_of_get_and_no_body(http: httpx.Client, upload: str, path: str, held: bool) -> None:
    path = path.replace("{id}", upload).replace("{number}", "1")
    path = path.replace("{path:text}", "tiny" if "base" in path or "manifests" in path else MED)
    path = path.replace("{ref:text}", MED)
    required = {"/files/": {"name": WEIGHTS}, "retentions": {"keep": "1"}, "holders": {"sha256": sha256(b"x")}}
    query = next((query for part, query in required.items() if part in path), {})
    got = http.get(path, params=query)
    assert got.status_code == (404 if "nowhere" in path or "none" in path else 200), got.text
    headers = {"If-None-Match": got.headers.get("etag", "*")} if held else {}
    expected = http.get(path, params=query, headers=headers)
    asked = http.head(path, params=query, headers=headers)
    assert (asked.status_code, asked.content) == (expected.status_code, b"")
    kept = [{name: value for name, value in a.headers.items() if name not in VARYING} for a in (asked, expected)]
    assert kept[0] == kept[1]


def test_head_of_a_file_takes_no_range_and_reads_no_byte(
    http: httpx.Client, behind: EmbeddedRegistry, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("the bytes were opened")

    monkeypatch.setattr(behind, "open_stored", opened)
    answer = http.head(f"/v1/files/{MED}", params={"name": WEIGHTS}, headers={"Range": "bytes=9-"})
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(material.rank4.weights))
    assert "content-range" not in answer.headers


def test_the_connection_goes_on_after_a_head(http: httpx.Client) -> None:
    request = f"HEAD /v1/files/{MED}?name={WEIGHTS} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", http.base_url.port or 0), timeout=10) as connection:
        connection.sendall(
            request.encode() + b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        answers = connection.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.endswith(b"}")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/health", "GET, HEAD"),
        ("/v1/nodes", "POST"),
        (f"/v1/nodes/{MED}", "DELETE, GET, HEAD"),
        ("/v1/bases", "GET, HEAD, POST"),
        (f"/v1/aliases/{MED}@stable", "DELETE, GET, HEAD, PUT"),
        (f"/v1/aliases/{MED}", "GET, HEAD"),
        (f"/v1/versions/{MED}", "GET, HEAD, POST"),
        (f"/v1/withdrawals/{MED}@1", "DELETE, POST"),
        ("/v1/base-files/tiny", "GET, HEAD, PUT"),
        (f"/v1/uploads/{'0' * 32}", "DELETE, GET, HEAD"),
        (f"/v1/uploads/{'0' * 32}/parts/1", "GET, HEAD, PUT"),
        (f"/v1/uploads/{'0' * 32}/complete", "POST"),
    ],
)
def test_a_method_that_a_path_does_not_take_is_answered_with_all_that_it_takes(
    http: httpx.Client, path: str, allowed: str
) -> None:
    for method in ("PATCH", "OPTIONS", "TRACE"):
        answer = http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
        assert problem(answer)["type"] == "urn:loratree:problem:method-not-allowed"


def test_a_range_counts_only_while_the_file_is_the_one_that_if_range_names(
    http: httpx.Client, material: Material
) -> None:
    content = material.rank4.weights
    etag = f'"{sha256(content)}"'
    told = {
        etag: 206,
        f'"{sha256(b"other")}"': 200,
        f"W/{etag}": 200,  # a weak validator does not say that the bytes are equal
        sha256(content): 200,
        "*": 200,
        "": 200,
        "Sat, 01 Jan 2050 00:00:00 GMT": 200,  # no answer has a Last-Modified to compare it with
    }
    for validator, status in told.items():
        headers = {"Range": "bytes=100-", "If-Range": validator}
        answer = http.get(f"/v1/files/{MED}", params={"name": WEIGHTS}, headers=headers)
        assert (answer.status_code, answer.content) == (status, content[100:] if status == 206 else content), validator
    alone = http.get(f"/v1/files/{MED}", params={"name": WEIGHTS}, headers={"If-Range": etag})
    assert (alone.status_code, alone.content) == (200, content)


@pytest.fixture
def direct(storage: Storage, material: Material) -> Iterator[str]:
    """The URL of a server whose clients read from S3."""
    registry = open_fresh(storage.settings(**storage.bucket()))
    registry.add_base("tiny", material.base)
    publish(registry, MED, material.rank4)
    yield f"{storage.served().over(registry, storage.folder)}/v1/files/{MED}?name={WEIGHTS}"
    registry.close()


def test_over_s3_another_if_range_is_answered_here_as_the_store_could_not_compare_it(
    direct: str, material: Material
) -> None:
    content = material.rank4.weights
    same = httpx.get(direct, headers={"Range": "bytes=100-", "If-Range": f'"{sha256(content)}"'})
    assert same.status_code == 307
    other = httpx.get(direct, headers={"Range": "bytes=100-", "If-Range": '"other"'}, follow_redirects=True)
    assert (other.status_code, other.content) == (200, content)


def test_over_s3_head_leads_to_a_url_that_answers_head(direct: str, material: Material) -> None:
    answer = httpx.head(direct)
    assert (answer.status_code, answer.headers["etag"]) == (307, f'"{sha256(material.rank4.weights)}"')
    there = httpx.head(answer.headers["location"])
    assert (there.status_code, there.headers["content-length"]) == (200, str(len(material.rank4.weights)))


@pytest.mark.parametrize("path", ["/v1/nodes", "/v1/health", f"/v1/uploads/{'0' * 32}/parts/1"])
def test_a_request_with_two_lengths_is_refused_and_what_follows_it_is_not_read(http: httpx.Client, path: str) -> None:
    method = "GET" if "health" in path else "PUT" if "parts" in path else "POST"
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request += "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    smuggled = "GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", http.base_url.port or 0), timeout=10) as connection:
        connection.sendall((request + smuggled).encode())
        answers = connection.makefile("rb").read()  # to the end: the server closes the connection
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert answers.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answers.lower()


class Sized(LocalBlobStore):
    """A store whose blobs have the size that is recorded, whatever stands in their places."""

    def size(self, digest: str) -> int | None:
        return SIZES[digest]


SIZES: dict[str, int] = {}


def test_a_disk_that_cannot_read_a_file_is_told_by_the_files_name(
    web: Served, behind: EmbeddedRegistry, material: Material, home: Path, tmp_path: Path
) -> None:
    published = publish(behind, "tiny/broken", material.rank2).version.files[0]
    SIZES[published.sha256] = published.size
    store = Sized(home / "blobs")
    break_reads(store.path(published.sha256))
    url = web.over(EmbeddedRegistry(behind._engine, store), tmp_path)
    answer = httpx.get(f"{url}/v1/files/tiny/broken", params={"name": WEIGHTS})
    assert answer.status_code == 503
    sentence = f"{store.path(published.sha256)} cannot be read: Input/output error; check the disk"
    assert problem(answer)["detail"].startswith(sentence)
