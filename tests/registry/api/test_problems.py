"""Every failure is a problem document with one sentence, whoever notices it."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.database.engine import open_engine, prepare
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.wire.problem import MEDIA_TYPE
from tests.registry.material import Material, publish
from tests.registry.serving import Nothing, Served

from .conftest import MED


def problem(response: httpx.Response) -> dict[str, Any]:
    """The document of a refused request, checked for its form."""
    assert response.headers["content-type"] == MEDIA_TYPE
    document: dict[str, Any] = response.json()
    assert [*document][:5] == ["type", "title", "status", "detail", "instance"]
    named = {"request_id"} if response.status_code >= 500 else set()  # an operator finds its line in the log
    assert named <= set(document) <= named | {"type", "title", "status", "detail", "instance", "current"}
    assert document.get("request_id", response.headers["x-request-id"]) == response.headers["x-request-id"]
    assert document["status"] == response.status_code
    assert document["type"].startswith("urn:loratree:problem:")
    assert document["detail"]
    assert "\n" not in document["detail"]
    return document


@pytest.mark.parametrize(
    ("path", "status", "slug", "detail"),
    [
        ("/v1/nodes/tiny/nowhere", 404, "not-found", "tiny/nowhere"),
        ("/v1/nodes/tiny/Upper", 422, "invalid-input", "use lower case, such as 'upper'"),
        ("/v1/nodes/", 422, "invalid-input", "path '' is empty"),
        ("/v1/nodes/tiny/%2E%2E/x", 422, "invalid-input", "segment '..'"),
        ("/v1/nodes/tiny%0A", 422, "invalid-input", "segment 'tiny\\n'"),
        ("/v1/nodes/tiny%00x", 422, "invalid-input", "tiny\\x00x"),
        ("/v1/version/tiny/medicine@7", 404, "not-found", "tiny/medicine"),
        ("/v1/children/tiny?limit=0", 422, "invalid-input", "a page holds 1 to 1000 items, got a limit of 0"),
        ("/v1/children/tiny?limit=many", 422, "invalid-input", "limit: Input should be a valid integer"),
        ("/v1/resolve/tiny/medicine?weight=tiny/medicine", 422, "invalid-input", "'tiny/medicine' is not PATH:NUMBER"),
        (
            "/v1/resolve/tiny/medicine?weight=tiny/x:1&weight=tiny/x:1",
            422,
            "invalid-input",
            "'tiny/x' is given 2 times",
        ),
        (
            "/v1/resolve/tiny/medicine?weight=tiny/medicine:half",
            422,
            "invalid-input",
            'tiny/medicine has "half", expected',
        ),
        ("/v1/resolve/tiny/medicine?weight=tiny/x:1", 422, "invalid-input", "its levels are tiny/medicine"),
        ("/v1/files/tiny/medicine", 422, "invalid-input", "name: Field required"),
        ("/v1/files/tiny/medicine?name=../x", 404, "not-found", "has no file '../x'"),
        ("/v2/nodes/tiny", 404, "no-route", "this server has no route /v2/nodes/tiny"),
        ("/v1/nodes", 405, "method-not-allowed", "/v1/nodes does not take GET: see /docs"),
    ],
)
def test_a_refused_get_tells_its_reason(http: httpx.Client, path: str, status: int, slug: str, detail: str) -> None:
    response = http.get(path)
    document = problem(response)
    assert (response.status_code, document["type"].rpartition(":")[2]) == (status, slug)
    assert detail in document["detail"]
    assert document["instance"] == path.partition("?")[0]


def test_a_conflict_is_409(http: httpx.Client) -> None:
    response = http.put(f"/v1/aliases/{MED}@stable", json={"version": 1, "expected": None})
    assert response.status_code == 409
    document = problem(response)
    assert "is at version 1" in document["detail"]
    assert document["current"] == 1


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "its body: Field required, send a JSON object as application/json"),
        (b"{", "its body is not JSON (EOF while parsing an object"),
        (b"[]", "its body: Input should be an object"),
        (b"{}", "path: Field required"),
        (b'{"path": 7}', "path: Input should be a valid string"),
        (b'{"path": "tiny/x", "level": "deep"}', "level: Input should be 'base', 'domain'"),
        (b'{"path": "tiny/x", "colour": "red"}', "colour: no such field"),
        (b'{"colour": "red"}', "path: Field required; colour: no such field"),
        (b'{"path": "\\ud800"}', "its body is not JSON"),
        (b'{"path": "tiny/a", "path": "tiny/b"}', "'path' stands twice in one object"),
        (b"\xff\xfe", "its body is not JSON"),
        (b"[" * 100_000, "the body of POST /v1/nodes holds up to 100001 values, at most 20000 are read: send fewer"),
        (b'{"path": "tiny/x", ' + b", ".join(b'"%d": 0' % n for n in range(10_000)) + b"}", "0: no such field"),
        (b'{"path": ' + b"[" + b"0, " * 19_000 + b"0]}", "path: Input should be a valid string"),
        (b"[" * 19_000, "its body is not JSON (recursion limit exceeded"),
        (b'{"path":' * 19_000 + b"1" + b"}" * 19_000, "its body is not JSON (recursion limit exceeded"),
    ],
)
def test_a_body_that_is_not_what_the_route_takes_is_told_in_one_sentence(
    http: httpx.Client, body: bytes, detail: str
) -> None:
    response = http.post("/v1/nodes", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert detail in problem(response)["detail"]


def test_a_config_as_deep_as_the_parser_allows_is_refused_without_a_crash(http: httpx.Client) -> None:
    config: Any = 1
    for _ in range(150):
        config = {"x": config}
    version = {"config": {"r": config}, "files": [], "parent": None, "found": "assumed"}
    response = http.post(f"/v1/versions/{MED}", json=version)
    assert response.status_code == 422
    problem(response)


def test_a_body_of_another_type_is_refused_so_that_no_web_form_can_write(http: httpx.Client) -> None:
    body = json.dumps({"path": "tiny/x"})
    response = http.post("/v1/nodes", content=body, headers={"Content-Type": "text/plain"})
    assert response.status_code == 422
    assert "send a JSON object as application/json" in problem(response)["detail"]


@pytest.mark.parametrize(
    "media_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "application/jsonx"]
)
def test_a_body_is_read_as_json_only_where_it_says_that_it_is(http: httpx.Client, media_type: str | None) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    for method, path in (("POST", "/v1/nodes"), ("POST", "/v1/uploads"), ("PUT", f"/v1/aliases/{MED}@evil")):
        response = http.request(method, path, content=b"{}", headers=headers)
        assert response.status_code == 422
        assert "send a JSON object as application/json" in problem(response)["detail"]


@pytest.mark.parametrize("media_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_may_name_its_charset(http: httpx.Client, media_type: str) -> None:
    response = http.post("/v1/nodes", content=b'{"path": "tiny/charset"}', headers={"Content-Type": media_type})
    assert response.status_code == 200


WRITES = [
    ("POST", "/v1/nodes", b'{"path": "tiny/evil"}'),
    ("PUT", f"/v1/aliases/{MED}@evil", b'{"version": 1, "expected": null}'),
    ("DELETE", f"/v1/aliases/{MED}@stable?expected=1", b""),
    ("PUT", f"/v1/uploads/{'0' * 32}/parts/1", b"x"),
    ("POST", f"/v1/uploads/{'0' * 32}/complete", b""),
]


@pytest.mark.parametrize(
    "said",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_no_other_sites_page_can_write(
    http: httpx.Client, said: dict[str, str], method: str, path: str, body: bytes
) -> None:
    response = http.request(method, path, content=body, headers={"Content-Type": "application/json"} | said)
    assert (response.status_code, problem(response)["type"]) == (403, "urn:loratree:problem:cross-site-request")
    assert http.get("/v1/nodes/tiny/evil").status_code == 404
    assert [alias["name"] for alias in http.get(f"/v1/aliases/{MED}").json()] == ["stable"]


def test_this_servers_own_pages_and_programs_can_write(http: httpx.Client) -> None:
    own = {"Origin": str(http.base_url).rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    for said in (own, {"Sec-Fetch-Site": "none"}, {}):
        assert http.post("/v1/nodes", json={"path": "tiny/own"}, headers=said).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "detail"),
    [
        (
            "PUT",
            f"/v1/aliases/{MED}@x",
            {"version": True, "expected": None},
            "version: Input should be a valid integer",
        ),
        ("PUT", f"/v1/aliases/{MED}@x", {"version": "1", "expected": None}, "version: Input should be a valid integer"),
        ("PUT", f"/v1/aliases/{MED}@x", {"version": 1.5, "expected": None}, "version: Input should be a valid integer"),
        (
            "POST",
            "/v1/uploads",
            {"sha256": "sha256:" + "0" * 64, "size": True},
            "size: Input should be a valid integer",
        ),
        (
            "POST",
            "/v1/bases",
            {
                "name": "lax",
                "manifest": {
                    "parameters": [{"name": "x", "shape": [True, "3", 2.5], "dtype": "F32", "kind": "Linear"}]
                },
            },
            "; ".join(f"manifest.parameters.0.shape.{place}: Input should be a valid integer" for place in range(3)),
        ),
    ],
)
def test_no_value_is_taken_for_another_of_another_type(
    http: httpx.Client, method: str, path: str, body: dict[str, Any], detail: str
) -> None:
    response = http.request(method, path, json=body)
    assert response.status_code == 422
    assert detail in problem(response)["detail"]


def test_a_body_that_is_announced_as_too_large_is_refused_before_it_is_sent(http: httpx.Client) -> None:
    request = (
        "POST /v1/nodes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999999\r\n"
    )
    with socket.create_connection(("127.0.0.1", http.base_url.port or 0), timeout=10) as connection:
        connection.sendall(f"{request}\r\n".encode())
        assert connection.makefile("rb").readline().split()[1] == b"413"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_413(http: httpx.Client, chunked: bool) -> None:
    body = b'{"path": "' + b"x" * (2 * 1024 * 1024) + b'"}'
    content: Any = iter([body]) if chunked else body
    response = http.post("/v1/nodes", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert problem(response)["detail"] == "the body is larger than POST /v1/nodes takes: send less"


def test_a_bases_manifest_may_have_several_megabytes(http: httpx.Client) -> None:
    digest = "sha256:" + "0" * 64
    parameters = [
        {"name": f"layers.{n}.weight", "shape": [8, 8], "dtype": "F32", "kind": "Linear", "sha256": digest}
        for n in range(30_000)
    ]
    body = {"name": "large", "manifest": {"parameters": parameters}}
    assert len(json.dumps(body)) > 4 * 1024 * 1024
    response = http.post("/v1/bases", json=body, timeout=60)
    assert (response.status_code, response.json()["parameters"]) == (200, 30_000 * 64)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:8321", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("evil.example:8321", 421),
        ("testserver", 421),
        ("[::1].evil.example", 421),
        ("", 421),
    ],
)
def test_only_this_machines_names_are_answered_to(http: httpx.Client, host: str, status: int) -> None:
    response = http.get("/v1/health", headers={"Host": host})
    assert response.status_code == status
    if status == 421:
        assert "expected one of 127.0.0.1, [::1], localhost" in problem(response)["detail"]


@pytest.mark.parametrize("hosts", [[], ["Host: localhost", "Host: evil.example"]])
def test_a_request_with_no_host_or_two_is_refused(http: httpx.Client, hosts: list[str]) -> None:
    request = "\r\n".join(["GET /v1/health HTTP/1.0", *hosts, "", ""])
    with socket.create_connection(("127.0.0.1", http.base_url.port or 0)) as connection:
        connection.sendall(request.encode())
        answer = connection.makefile("rb").readline()
    assert answer.split()[1] in (b"421", b"400")


def test_a_bug_answers_500_and_tells_nothing_of_it(web: Served, tmp_path: Path) -> None:
    url = web.over(Nothing(), tmp_path)  # type: ignore[arg-type]
    response = httpx.get(f"{url}/v1/bases")
    assert (response.status_code, problem(response)["type"]) == (500, "urn:loratree:problem:internal-error")
    assert problem(response)["detail"] == "the server failed while it answered: its log tells why"


def test_a_publish_whose_commit_fails_does_not_answer_2xx(web: Served, material: Material, tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'loratree.db'}")
    prepare(engine)
    registry = EmbeddedRegistry(engine, LocalBlobStore(tmp_path / "blobs"))
    registry.add_base("tiny", material.base)
    published = publish(registry, MED, material.rank4).version
    body = {
        "config": material.rank4.config,
        "files": [{"name": f.name, "size": f.size, "sha256": f.sha256} for f in published.files],
        "parent": None,
        "found": "assumed",
    }
    url = f"{web.over(registry, tmp_path)}/v1/versions/tiny/other"

    @event.listens_for(engine, "commit")
    def fail(_: object) -> None:
        raise OSError("no space left for the log")

    refused = httpx.post(url, json=body)
    assert refused.status_code >= 500
    problem(refused)
    event.remove(engine, "commit", fail)
    assert httpx.get(url).status_code == 404
    assert httpx.post(url, json=body).status_code == 201
    registry.close()


PLACES = [
    "nodes",
    "children",
    "descendants",
    "count",
    "versions",
    "version",
    "resolve",
    "lineage",
    "ancestry",
    "dependents",
    "aliases",
]
PLACES += ["events", "bases", "manifests", "files"]
HOSTILE = [
    "%00",
    "%0A",
    "..",
    "%2E%2E/%2E%2E/etc/passwd",
    "tiny@",
    "tiny@@",
    "tiny@%00",
    "%ED%A0%80",
    "tiny/medicine@" + "9" * 400,
]
HOSTILE += [
    "tiny%2Fmedicine@stable%2F..",
    "a" * 9000,
    "/" * 200,
    "tiny/" * 40,
    "%F0%9F%8C%B3",
    "tiny@sha256:" + "g" * 64,
    "'--",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_path_however_strange_makes_the_server_fail(http: httpx.Client, place: str) -> None:
    for path in HOSTILE:
        for query in ("name=x", "after=%00&limit=1&name=%00", "follow=%2E%2E&content=x&after=x&name=x"):
            response = http.get(f"/v1/{place}/{path}?{query}")
            assert response.status_code in (404, 422), (path, query, response.text)
            problem(response)
