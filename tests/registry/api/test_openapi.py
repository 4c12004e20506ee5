"""The OpenAPI document: complete, and true to itself."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from hypothesis import example, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from loratree_registry.api import examples, schema_rules
from loratree_registry.api.app import ROUTERS, create_app
from loratree_registry.api.examples import UPLOAD_ID, as_json
from loratree_registry.catalog.paging import number_after
from loratree_registry.wire.problem import (
    KINDS,
    MEDIA_TYPE,
    cross_site,
    internal,
    late,
    misdirected,
    problem_of,
    refused,
    too_long,
)
from loratree_registry.wire.query import written
from tests.registry.serving import Nothing

DOCUMENT: dict[str, Any] = create_app(Nothing(), staging=Path("unused")).openapi()  # type: ignore[arg-type]
OPERATIONS = [
    pytest.param(path, method, operation, id=operation["operationId"])
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]
each_operation = pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)


def contents(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each media type of an operation's request and answers, with its schema and examples."""
    for place in (operation.get("requestBody", {}), *operation["responses"].values()):
        yield from place.get("content", {}).items()


def examples_of(media: dict[str, Any]) -> list[Any]:
    named = [example["value"] for example in media.get("examples", {}).values()]
    return named + ([media["example"]] if "example" in media else [])


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)


def test_every_route_is_in_the_document_under_an_id_of_its_own() -> None:
    routes = {route.name for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)}
    assert len(routes) > 20
    assert sorted(routes) == sorted(str(parameter.id) for parameter in OPERATIONS)


@each_operation
def test_an_operation_says_what_it_is_and_which_problems_it_answers(
    path: str, method: str, operation: dict[str, Any]
) -> None:
    assert operation["tags"]
    assert operation["description"].endswith(".")
    assert {"422", "500", "503", "default"} < set(operation["responses"])
    for status, answer in operation["responses"].items():
        if not status.startswith(("2", "3")):
            assert answer["content"][MEDIA_TYPE]["schema"] == {"$ref": "#/components/schemas/Problem"}
    if "{" in path:
        assert "404" in operation["responses"]


@each_operation
def test_every_json_body_and_answer_has_an_example_that_its_schema_accepts(
    path: str, method: str, operation: dict[str, Any]
) -> None:
    for media_type, media in contents(operation):
        if media_type == "application/octet-stream":
            continue
        assert examples_of(media), f"{media_type} has no example"
        validator = Draft202012Validator(media["schema"] | {"components": DOCUMENT["components"]})
        for shown in examples_of(media):
            validator.validate(as_json(shown) if hasattr(shown, "__dataclass_fields__") else shown)


@each_operation
def test_every_path_parameter_has_an_example_and_every_query_a_description(
    path: str, method: str, operation: dict[str, Any]
) -> None:
    for parameter in operation.get("parameters", []):
        assert parameter["description"]
        if parameter["in"] == "path":
            [example] = parameter["schema"]["examples"]
            assert Draft202012Validator(parameter["schema"]).is_valid(example)


def test_a_validator_refuses_a_wrong_example() -> None:
    """The tests above can fail: the schemas are closed where requests are read."""
    media = DOCUMENT["paths"]["/v1/uploads"]["post"]["requestBody"]["content"]["application/json"]
    validator = Draft202012Validator(media["schema"] | {"components": DOCUMENT["components"]})
    assert not validator.is_valid({"sha256": UPLOAD_ID})
    assert not validator.is_valid({"sha256": UPLOAD_ID, "size": 1, "uri": "file:///etc/passwd"})


def test_request_schemas_refuse_unknown_fields() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    for name in (
        "NewBase",
        "NewNode",
        "NewUpload",
        "NewVersion",
        "Move",
        "Reason",
        "Keep",
        "BaseManifestInput",
        "FileDigestInput",
    ):
        assert schemas[name]["additionalProperties"] is False


def test_each_record_has_a_name_of_its_own_that_is_a_classs_name_in_every_language() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", name) for name in schemas)
    assert [schema["title"] for schema in schemas.values()] == list(schemas)
    assert len({name.lower() for name in schemas}) == len(schemas)
    inner = {**DOCUMENT, "components": {"schemas": {name: {**schema, "title": 0} for name, schema in schemas.items()}}}
    assert set(titles(inner["paths"])) == set(), "a title of a field is a class to a generator"


def titles(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("title"), str) and "detail" not in value:
            yield value["title"]
        for name, item in value.items():
            if name not in ("example", "examples"):
                yield from titles(item)
    elif isinstance(value, list):
        for item in value:
            yield from titles(item)


def test_each_operation_has_the_name_of_a_good_method() -> None:
    names = [str(parameter.id) for parameter in OPERATIONS]
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", name) for name in names)
    assert len(set(names)) == len(names)


@each_operation
def test_an_example_of_a_refusal_is_one_that_its_route_gives(path: str, method: str, operation: dict[str, Any]) -> None:
    for status, answer in operation["responses"].items():
        media = answer.get("content", {}).get(MEDIA_TYPE)
        if media is None:
            continue
        shown = media["example"]
        assert "{" not in shown["instance"]
        pattern = re.sub(r"\\{[a-z]+\\}", ".+", re.escape(path))
        assert re.fullmatch(pattern, shown["instance"])
        assert ("request_id" in shown) is (shown["status"] >= 500)
        if status == "404":
            noun = path.split("/")[2]
            about = {"uploads": "there is no upload", "bases": "the base", "manifests": "the base"}.get(noun, "")
            assert shown["detail"].startswith(about)
        if status == "409":
            assert ("current" in shown) is shown["detail"].startswith("the alias stable") is ("aliases" in path)


def test_a_digest_a_size_a_number_and_a_time_of_an_answer_have_their_rules() -> None:
    schemas = DOCUMENT["components"]["schemas"]
    version = schemas["Version"]["properties"]
    assert version["digest"]["pattern"] == "^sha256:[0-9a-f]{64}$"
    assert version["size"]["minimum"] == 0
    assert (version["number"]["minimum"], version["number"]["maximum"]) == (1, 999_999_999)
    assert version["created_at"]["format"] == "date-time"
    assert version["path"]["pattern"].startswith("^[a-z0-9]")
    assert schemas["Level"]["enum"] == ["base", "domain", "subdomain", "task", "user"]
    assert version["level"] == {"$ref": "#/components/schemas/Level"}


def test_the_reference_page_lists_every_route_and_no_other() -> None:
    page = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([A-Z]+) (/v1/\S+)` \|", page, flags=re.MULTILINE)
    assert sorted(told) == sorted((method.upper(), path) for path, method, _ in (p.values for p in OPERATIONS))


def test_the_reference_page_lists_every_type_of_problem_and_no_other() -> None:
    page = (Path(__file__).parents[3] / "docs" / "http-api.md").read_text(encoding="utf-8")
    told = re.findall(r"^  \| `([a-z-]+)` \| ([0-9]+) \|", page, flags=re.MULTILINE)
    errors = [problem_of(kind("why"), "/") for kind in KINDS]
    refusals = [refused(status, "GET", "/", "why") for status in (400, 404, 405, 413)]
    others = [misdirected("h", "n", "/"), cross_site("o", "/"), internal("/"), late("body", 1), too_long(1)]
    assert sorted(told) == sorted((one.slug, str(one.status)) for one in [*errors, *refusals, *others])


def test_the_examples_tell_of_one_tree_that_can_be() -> None:
    above, leaf = examples.RESOLUTION.chain
    assert (above.follow, leaf.follow) == (None, None)
    assert (leaf.pin.path, leaf.pin.version, leaf.pin.digest) == (above.path, above.version, above.digest)
    assert examples.RESOLUTION.composition == examples.RESOLUTION.to_chain().digest
    child, root = examples.LINEAGE.edges
    assert (child.parent, root.parent) == (root.child, None)
    assert examples.MANIFEST.digest == examples.BASE.digest
    assert examples.NODE.aliases == {examples.ALIAS.name: examples.ALIAS.version}
    for path in ("versions", "dependents", "events"):
        operation = DOCUMENT["paths"][f"/v1/{path}/{{{'ref' if path == 'dependents' else 'path'}}}"]["get"]
        assert number_after(operation["responses"]["200"]["content"]["application/json"]["example"]["next"])
    for path in ("/v1/bases", "/v1/children/{path}", "/v1/descendants/{path}"):
        example = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["example"]
        assert example["next"] == example["items"][0]["path" if "{" in path else "name"]


@given(weight=st.floats(allow_nan=False, allow_infinity=False))
@example(weight=1 / 3)
@example(weight=1e-10)
@example(weight=5e-324)
@example(weight=1e16)
def test_the_document_allows_each_weight_that_the_client_sends(weight: float) -> None:
    [text] = written({"tiny/medicine": weight})
    rule = schema_rules._PARAMETERS["weight"]["items"]["pattern"]
    assert re.fullmatch(rule, text)
