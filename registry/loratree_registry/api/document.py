"""The OpenAPI document as clients are generated from it: one name for each record, rules, and examples of refusals."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final, get_args

from fastapi import FastAPI
from pydantic import TypeAdapter

from loratree_registry.api import examples
from loratree_registry.api.examples import BASE, PARENT, PATH, REF, UPLOAD_ID, replaced
from loratree_registry.api.schema_rules import add_rules
from loratree_registry.core.paths import LEVELS
from loratree_registry.core.records import PinSource
from loratree_registry.core.uploads import unknown_upload
from loratree_registry.errors import Conflict, NotFound
from loratree_registry.wire.problem import MEDIA_TYPE, Problem, problem_of, refused

_REFERENCE: Final = "#/components/schemas/"
_PAGE: Final = re.compile(r"Page_(\w+)_")
_WORDS: Final = {"Level": LEVELS, "PinSource": get_args(PinSource)}
_REQUEST_ID: Final = "5f2b9c0d-1a"
_OTHER: Final = "sha256:" + "9" * 64
# What a route says of a name that the registry does not hold, by the beginning of its path.
_MISSING: Final = {
    "/v1/uploads/": str(unknown_upload(UPLOAD_ID)),
    "/v1/nodes": f"{PATH} is not known: the nearest node above it is {PARENT}, "
    f"see `loratree ls {PARENT}` for what it holds",
    **{
        f"/v1/{noun}": f"the base {BASE.name} is not known: add it with `loratree base add {BASE.name} DIR`"
        for noun in ("bases", "sources", "manifests", "missing", "base-files")
    },
}
# What a route says of a request that contradicts what the registry holds, by its method and the beginning of its path.
_CONFLICTS: Final = {
    "post /v1/bases": f"the base {BASE.name} is {BASE.digest} and cannot become {_OTHER}: "
    "other weights are another base, add them under another name",
    "delete /v1/bases": f"the base {BASE.name} cannot be removed: versions depend on it, delete them first",
    "put /v1/base-files": f"the base {BASE.name} is stored already and as other files: model.safetensors",
    "post /v1/nodes": f"{PATH} is a subdomain and cannot become a task: levels never change",
    "delete /v1/nodes": f"{PATH} is not empty: {PATH}/diagnosis is below it, remove that first",
    "post /v1/versions": f"the head above {PATH} changed while the adapter was checked: publish it again",
    "delete /v1/version/": f"{PATH}@2 cannot be deleted: {PATH}/diagnosis@1 was trained on it; delete that first, "
    f"or withdraw it by `loratree withdraw {PATH}@2 --reason TEXT`",
    "post /v1/withdrawals": f"{PATH}@2 is named by the alias stable: move it by `loratree alias set {PATH} stable "
    f"VERSION`, or remove it by `loratree alias rm {PATH} stable`, then withdraw",
    "get /v1/resolve": f"the chain of {REF} holds withdrawn versions: {PATH}@2 (it diverges); name another version, "
    "or leave strict out to take it as it is",
    "put /v1/uploads/": "this registry takes no parts itself: send each part to the URL that the upload gives",
    "post /v1/uploads/": f"upload {UPLOAD_ID} misses the parts 2: send them, then complete it",
    "delete /v1/uploads/": f"upload {UPLOAD_ID} is being completed by another request: wait",
}


def complete_document(app: FastAPI) -> None:
    """Let `app.openapi` return the whole document; it is computed once, when it is first asked for."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI documents this way to extend the document


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    document = replaced(document, examples.NULL, None)
    document["components"]["schemas"]["Problem"] = TypeAdapter(Problem).json_schema()
    add_rules(document)
    _fit_examples(document)
    document = _name_words(_rename(document))
    _drop_titles(document)
    return document


def _rename(document: dict[str, Any]) -> dict[str, Any]:
    """Give each record a name that is a class's name in every language, such as `BasePage` for `Page_Base_`."""
    schemas = document["components"]["schemas"]
    names = {f'"{_REFERENCE}{name}"': f'"{_REFERENCE}{_name_of(name)}"' for name in schemas}
    text = json.dumps(document["paths"]), json.dumps(schemas)
    renamed = [_REFERENCES.sub(lambda found: names[found[0]], part) for part in text]
    document["paths"] = json.loads(renamed[0])
    document["components"]["schemas"] = {_name_of(name): schema for name, schema in json.loads(renamed[1]).items()}
    return document


def _name_words(document: dict[str, Any]) -> dict[str, Any]:
    """Make a record of each list of words that several records share, so that a generator makes one class of it."""
    for name, words in _WORDS.items():
        listed = {"type": "string", "enum": list(words)}
        document = _with_reference(document, listed, {"$ref": f"{_REFERENCE}{name}"})
        document["components"]["schemas"][name] = listed
    return document


def _with_reference(value: Any, listed: dict[str, Any], reference: dict[str, Any]) -> Any:
    """Return a value with `reference` in place of each schema that lists the words of `listed`."""
    if isinstance(value, dict):
        if value.get("enum") == listed["enum"] and value.get("type") == "string":
            return reference
        return {name: _with_reference(item, listed, reference) for name, item in value.items()}
    return [_with_reference(item, listed, reference) for item in value] if isinstance(value, list) else value


_REFERENCES: Final = re.compile(rf'"{_REFERENCE}[^"]*"')


def _name_of(name: str) -> str:
    name = name.removesuffix("-Output").replace("-Input", "Input")
    page = _PAGE.fullmatch(name)
    return f"{page[1]}Page" if page else name


def _drop_titles(document: dict[str, Any]) -> None:
    """Leave a title to each record alone, its name: generators make a class of each title, and fields share theirs."""
    for schema in _schemas_of_operations(document):
        _drop_title(schema)
    for name, schema in document["components"]["schemas"].items():
        _drop_title(schema)
        schema["title"] = name


def _schemas_of_operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for operations in document["paths"].values():
        for operation in operations.values():
            yield from (parameter["schema"] for parameter in operation.get("parameters", ()))
            for place in (operation.get("requestBody", {}), *operation["responses"].values()):
                yield from (media["schema"] for media in place.get("content", {}).values() if "schema" in media)


def _drop_title(schema: Any) -> None:
    if not isinstance(schema, dict):
        return
    schema.pop("title", None)
    for field in schema.get("properties", {}).values():
        _drop_title(field)
    for name in ("items", "additionalProperties"):
        _drop_title(schema.get(name))
    for name in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for one in schema.get(name, ()):
            _drop_title(one)


def _fit_examples(document: dict[str, Any]) -> None:
    """Make each example of a refusal one that its own route gives."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            place = path
            for parameter in operation.get("parameters", ()):
                example = next(iter(parameter["schema"].get("examples", ["stable"])))
                place = place.replace(f"{{{parameter['name']}}}", str(example))
            for status, answer in operation["responses"].items():
                if MEDIA_TYPE in answer.get("content", {}):
                    media = answer["content"][MEDIA_TYPE]
                    media["example"] = _fit(media["example"], status, method, path, place)


def _fit(example: dict[str, Any], status: str, method: str, path: str, place: str) -> dict[str, Any]:
    if status == "default":
        return _as_example(refused(405, "PATCH", place, ""))
    if status == "404" and (sentence := _find(_MISSING, path)):
        return _as_example(problem_of(NotFound(sentence), place))
    if status == "409" and (sentence := _find(_CONFLICTS, f"{method} {path}")):
        return _as_example(problem_of(Conflict(sentence), place))
    current = {"current": 2} if status == "409" else {}
    named = {"request_id": _REQUEST_ID} if status.startswith("5") else {}
    return _without_nulls(example) | {"instance": place} | current | named


def _find(sentences: Mapping[str, str], start: str) -> str | None:
    return next((sentence for beginning, sentence in sentences.items() if start.startswith(beginning)), None)


def _as_example(problem: Problem) -> dict[str, Any]:
    return _without_nulls(asdict(problem))


def _without_nulls(example: dict[str, Any]) -> dict[str, Any]:
    """Return a problem as the server writes it, without the members that do not apply."""
    return {name: value for name, value in example.items() if value is not None}
