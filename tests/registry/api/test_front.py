"""What a stranger finds: `/`, a description at /docs that needs no script and no other server, compressed answers."""

import gzip
import hashlib
import re
from base64 import b64encode
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from loratree_registry.api.encoding import LARGE, takes_gzip
from loratree_registry.core.digests import FileDigest
from loratree_registry.embedded.registry import EmbeddedRegistry
from tests.registry.material import WEIGHTS

from .conftest import MED
from .test_openapi import DOCUMENT, OPERATIONS

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


class Tags(HTMLParser):
    """Collects the tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        (BROWSER, "text/html; charset=utf-8"),
        ("text/html", "text/html; charset=utf-8"),
        ("application/json, text/html", "application/json"),
        ("application/json;q=0.5, text/html", "text/html; charset=utf-8"),
        ("text/html;q=0", "application/json"),
        ("text/html;q=nonsense, image/png", "application/json"),
        ("TEXT/HTML", "text/html; charset=utf-8"),
    ],
)
def test_the_root_says_what_this_is(http: httpx.Client, accept: str | None, kind: str) -> None:
    http.headers.pop("accept")
    answer = http.get("/", headers={} if accept is None else {"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    assert "accept" in answer.headers["vary"].lower()
    for link in ("/docs", "/openapi.json", "/v1/health"):
        assert link in answer.text
        assert http.get(link).status_code == 200
    assert "loratree registry" in answer.text
    if kind == "application/json":
        assert list(answer.json()) == ["name", "version", "description", "docs", "openapi", "health"]


@pytest.mark.parametrize("path", ["/docs", "/"])
def test_a_page_works_without_the_internet_and_under_a_strict_policy(http: httpx.Client, path: str) -> None:
    answer = http.get(path, headers={"Accept": BROWSER})
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    tags = Tags(answer.text).found
    assert not {"script", "link", "img", "iframe", "object", "form"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("style", "src")]
        assert re.fullmatch(r"(/|#)\S*", attributes.get("href") or "/")
    [style] = re.findall(r"<style>(.*?)</style>", answer.text, flags=re.DOTALL)
    assert b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy


def test_the_page_describes_every_route_and_record_and_each_of_its_links_leads_somewhere(http: httpx.Client) -> None:
    tags = Tags(http.get("/docs").text).found
    ids = {str(attributes["id"]) for _, attributes in tags if "id" in attributes}
    assert {str(parameter.id) for parameter in OPERATIONS} <= ids
    assert {f"record-{name}" for name in DOCUMENT["components"]["schemas"]} <= ids
    inner = {str(attributes["href"])[1:] for _, attributes in tags if str(attributes.get("href", "")).startswith("#")}
    assert inner <= ids


@pytest.mark.parametrize("path", ["/", "/docs", "/openapi.json"])
def test_front_pages_have_etags_and_answer_head(http: httpx.Client, path: str) -> None:
    first = http.get(path)
    again = http.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    head = http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == first.headers["etag"]
    assert http.post(path).status_code == 405


class Wide(EmbeddedRegistry):
    """A registry that answers lists of any length."""

    def base_files(self, name: str) -> list[FileDigest]:
        digest = "sha256:" + "0" * 64
        return [FileDigest(f"model-{number:05d}.safetensors", number, digest) for number in range(int(name[1:]))]


@pytest.fixture
def wide(http: httpx.Client, behind: EmbeddedRegistry, web: Any, tmp_path: Any) -> httpx.Client:
    web.over(Wide(behind._engine, behind._blobs), tmp_path)
    return http


LONG, SHORT = "/v1/base-files/n2000", "/v1/base-files/n20"


def raw_body(http: httpx.Client, path: str, **headers: str) -> tuple[httpx.Response, bytes]:
    with http.stream("GET", path, headers={"Accept-Encoding": "identity"} | headers) as answer:
        return answer, b"".join(answer.iter_raw())


# The short way of a plain read, and the framework's own, which a query takes.
@pytest.mark.parametrize("path", [LONG, "/openapi.json", "/docs"])
def test_a_large_answer_is_compressed_for_whoever_takes_that(wide: httpx.Client, path: str) -> None:
    plain, body = raw_body(wide, path)
    packed, content = raw_body(wide, path, **{"Accept-Encoding": "br;q=1.0, gzip;q=0.5"})
    assert len(body) >= LARGE
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(content) == body
    assert len(content) < len(body) / 3
    for answer, sent in ((plain, body), (packed, content)):
        assert answer.headers["content-length"] == str(len(sent))
        assert answer.headers["vary"].lower() == "accept-encoding"
        assert answer.headers["content-type"] == plain.headers["content-type"]
    assert packed.headers["etag"] != plain.headers["etag"]
    for etag, encoding in ((plain.headers["etag"], "identity"), (packed.headers["etag"], "gzip")):
        held, nothing = raw_body(wide, path, **{"Accept-Encoding": encoding, "If-None-Match": etag})
        assert (held.status_code, nothing, held.headers["etag"]) == (304, b"", etag)
        assert held.headers["vary"].lower() == "accept-encoding"
        assert "content-encoding" not in held.headers
    other, _ = raw_body(wide, path, **{"Accept-Encoding": "gzip", "If-None-Match": plain.headers["etag"]})
    assert other.status_code == 200, "the client holds other bytes"
    head = wide.head(path, headers={"Accept-Encoding": "gzip"})
    assert head.headers["content-length"] == str(len(content))
    assert head.headers["etag"] == packed.headers["etag"]


def test_small_answers_and_bytes_of_adapters_are_sent_as_they_are(wide: httpx.Client, behind: EmbeddedRegistry) -> None:
    for path in (SHORT, "/v1/health", f"/v1/files/{MED}@1?name={WEIGHTS}"):
        answer, _ = raw_body(wide, path, **{"Accept-Encoding": "gzip"})
        assert answer.status_code == 200
        assert "content-encoding" not in answer.headers
        assert "vary" not in answer.headers


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        ("gzip", True),
        ("GZIP;q=0.1", True),
        ("*", True),
        ("x-gzip", True),
        ("deflate, gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("identity", False),
        ("", False),
        ("gzip;q=x", False),
        (",;,", False),
    ],
)
def test_what_a_client_accepts_is_read(accepted: str, takes: bool) -> None:
    assert takes_gzip([(b"accept-encoding", accepted.encode())]) is takes
