"""What answers look like: field order, validators, files."""

from dataclasses import fields
from typing import Any

import httpx
import pytest

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.records import Link, Node, Resolution, Version
from loratree_registry.embedded.registry import EmbeddedRegistry
from tests.registry.conftest import Storage, embedded_sqlite
from tests.registry.material import WEIGHTS, Material, publish, sha256
from tests.registry.serving import Served

from .conftest import MED

JSON_PAGES = ["/v1/bases", f"/v1/nodes/{MED}", f"/v1/version/{MED}", f"/v1/resolve/{MED}", f"/v1/aliases/{MED}"]


@pytest.mark.parametrize(
    ("path", "record"),
    [(f"/v1/nodes/{MED}", Node), (f"/v1/version/{MED}", Version), (f"/v1/resolve/{MED}", Resolution)],
)
def test_a_records_fields_come_in_the_order_of_its_definition(http: httpx.Client, path: str, record: Any) -> None:
    assert list(http.get(path).json()) == [field.name for field in fields(record)]


def test_nested_records_keep_their_order_too(http: httpx.Client) -> None:
    [link] = http.get(f"/v1/resolve/{MED}").json()["chain"]
    assert list(link) == [field.name for field in fields(Link)]


def test_the_same_question_gets_the_same_bytes(http: httpx.Client) -> None:
    assert len({http.get(f"/v1/resolve/{MED}").content for _ in range(3)}) == 1


@pytest.mark.parametrize("path", JSON_PAGES)
def test_a_client_that_holds_the_answer_is_told_so_without_a_body(http: httpx.Client, path: str) -> None:
    first = http.get(path)
    assert first.headers["cache-control"] == "private, no-cache"
    for held in (first.headers["etag"], f'"other", W/{first.headers["etag"]}', "*"):
        again = http.get(path, headers={"If-None-Match": held})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        assert again.headers["cache-control"] == "private, no-cache"


def test_a_changed_answer_has_another_etag(http: httpx.Client, behind: EmbeddedRegistry, material: Material) -> None:
    behind.create_node("tiny/physics")
    first = http.get("/v1/nodes/tiny/physics")
    publish(behind, "tiny/physics", material.rank4)
    second = http.get("/v1/nodes/tiny/physics", headers={"If-None-Match": first.headers["etag"]})
    assert (second.status_code, second.json()["head"]) == (200, 1)
    assert second.headers["etag"] != first.headers["etag"]


def test_a_problem_has_no_etag(http: httpx.Client) -> None:
    assert "etag" not in http.get("/v1/nodes/tiny/nowhere").headers


def test_publishing_answers_201_then_200(http: httpx.Client, material: Material) -> None:
    file = material.rank4.file
    body = {
        "config": material.rank4.config,
        "files": [{"name": file.name, "size": file.size, "sha256": file.sha256}],
        "parent": None,
        "found": "assumed",
    }
    answers = [http.post("/v1/versions/tiny/law", json=body) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert [answer.json()["created"] for answer in answers] == [True, False]
    assert answers[0].json()["version"] == answers[1].json()["version"]


@pytest.mark.parametrize("ref", [MED, f"{MED}@1", f"{MED}@stable", f"{MED}@latest"])
def test_a_file_comes_whole_under_its_digest(http: httpx.Client, material: Material, ref: str) -> None:
    response = http.get(f"/v1/files/{ref}", params={"name": WEIGHTS})
    assert response.content == material.rank4.weights
    assert response.headers["etag"] == f'"{sha256(material.rank4.weights)}"'
    assert response.headers["content-length"] == str(len(material.rank4.weights))
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_only_a_ref_that_never_moves_may_be_kept_for_ever(http: httpx.Client) -> None:
    digest = http.get(f"/v1/version/{MED}").json()["digest"]
    kept = {
        ref: http.get(f"/v1/files/{ref}", params={"name": WEIGHTS}).headers["cache-control"]
        for ref in (f"{MED}@1", f"{MED}@{digest}", f"{MED}@{digest[:19]}", MED, f"{MED}@stable")
    }
    assert kept == {
        f"{MED}@1": "private, max-age=31536000, immutable",
        f"{MED}@{digest}": "private, max-age=31536000, immutable",
        f"{MED}@{digest[:19]}": "private, no-cache",
        MED: "private, no-cache",
        f"{MED}@stable": "private, no-cache",
    }


class Moving(EmbeddedRegistry):
    """A registry whose alias `moving` is moved by another right after a file of it was found."""

    def file(self, ref: str, name: str) -> FileDigest:
        found = super().file(ref, name)
        self.set_alias(MED, "moving", version=2, expected=1)
        return found


def test_a_file_is_the_one_that_its_headers_tell_of_though_the_alias_moves_meanwhile(
    web: Served, storage: Storage, material: Material
) -> None:
    with embedded_sqlite(storage) as behind:
        behind.add_base("tiny", material.base)
        for adapter in (material.rank4, material.rank8):
            publish(behind, MED, adapter)
        behind.set_alias(MED, "moving", version=1, expected=None)
        url = web.over(Moving(behind._engine, behind._blobs), storage.folder)
        response = httpx.get(f"{url}/v1/files/{MED}@moving", params={"name": WEIGHTS})
        assert behind.version(f"{MED}@moving").number == 2
    assert response.headers["etag"] == f'"{sha256(material.rank4.weights)}"'
    assert response.content == material.rank4.weights


def test_a_file_that_the_client_holds_is_not_sent_again(http: httpx.Client, material: Material) -> None:
    headers = {"If-None-Match": f'"{sha256(material.rank4.weights)}"'}
    response = http.get(f"/v1/files/{MED}", params={"name": WEIGHTS}, headers=headers)
    assert (response.status_code, response.content) == (304, b"")


def test_the_documentation_is_served(http: httpx.Client) -> None:
    assert http.get("/docs").status_code == 200
    assert http.get("/openapi.json").json()["info"]["title"] == "loratree registry"


def test_the_health_page_tells_the_release(http: httpx.Client) -> None:
    health = http.get("/v1/health").json()
    assert list(health) == ["status", "version"]
    assert health["status"] == "ok"


def test_a_file_of_a_negative_size_is_refused(http: httpx.Client) -> None:
    wrong = {"files": [{"name": "config.json", "size": -1, "sha256": sha256(b"x")}]}
    answer = http.post("/v1/missing/tiny", json=wrong)
    assert answer.status_code == 422
    assert "'config.json' has -1" in answer.json()["detail"]
