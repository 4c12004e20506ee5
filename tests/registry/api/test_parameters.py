"""A parameter or field that a route does not have is refused by name, never ignored; the nearest right one is told."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from loratree_registry.api.app import create_app
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.settings import Settings
from tests.registry.fresh import open_fresh
from tests.registry.material import Material, publish

MED = "tiny/medicine"


@pytest.fixture(scope="module")
def registry(material: Material, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRegistry]:
    opened = open_fresh(Settings.from_environment({"LORATREE_HOME": str(tmp_path_factory.mktemp("home"))}))
    opened.add_base("tiny", material.base)
    publish(opened, MED, material.rank4)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def client(registry: EmbeddedRegistry, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    return TestClient(create_app(registry, staging=tmp_path_factory.mktemp("staging")), base_url="http://127.0.0.1")


def operations(client: TestClient) -> list[tuple[str, str, dict[str, Any]]]:
    document = client.get("/openapi.json").json()
    return [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def filled(path: str, operation: dict[str, Any]) -> str:
    """The route's path with its examples."""
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", str(parameter["schema"].get("examples", ["x"])[0]))
    return path


def test_every_route_refuses_a_parameter_that_it_does_not_have(client: TestClient) -> None:
    checked = 0
    for method, path, operation in operations(client):
        answer = client.request(method, filled(path, operation) + "?no_such=1")
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:loratree:problem:invalid-input"), (
            method,
            path,
        )
        assert "has no parameter 'no_such'" in answer.json()["detail"]
        checked += 1
    assert checked > 40


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("strct=true", "has no parameter 'strct' (did you mean 'strict'?): it takes follow, strict, weight"),
        ("Strict=true", "has no parameter 'Strict' (did you mean 'strict'?)"),
        ("strict=true&strict=false", "the parameter 'strict' of GET /v1/resolve/tiny/medicine is given twice"),
        ("strict=maybe", "strict"),
        ("x" * 500 + "=1", "has no parameter 'xxxx"),
    ],
)
def test_a_misspelt_parameter_is_named(client: TestClient, query: str, said: str) -> None:
    answer = client.get(f"/v1/resolve/{MED}?{query}")
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 600


def test_a_weight_is_given_once_for_each_path(client: TestClient) -> None:
    assert client.get(f"/v1/resolve/{MED}?weight={MED}:0.5").status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"path": "tiny/x", "levle": "task"}, "levle: no such field (did you mean 'level'?), it takes level, path"),
        ({"path": "tiny/x", "zzz": 1}, "zzz: no such field, it takes level, path"),
    ],
)
def test_a_misspelt_field_is_named(client: TestClient, body: dict[str, Any], said: str) -> None:
    answer = client.post("/v1/nodes", json=body)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_a_body_where_none_is_taken_is_refused(client: TestClient, registry: EmbeddedRegistry) -> None:
    for method, path in (("GET", f"/v1/nodes/{MED}"), ("DELETE", f"/v1/withdrawals/{MED}@1"), ("GET", "/v1/health")):
        answer = client.request(method, path, json={"dry_run": True})
        assert (answer.status_code, "takes no body: send it without one" in answer.json()["detail"]) == (422, True)
    assert registry.version(f"{MED}@1").withdrawn is None
