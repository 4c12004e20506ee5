"""The rules of the registry's words in the OpenAPI document: what a path, a ref, a digest or a size may be.

The registry checks every rule itself, so that an error is the same in this process and over HTTP. The document states
the rules too, so that a client can check before it asks, and so that a generated client knows them.
"""

from collections.abc import Mapping
from typing import Any, Final

from loratree_registry.api import examples
from loratree_registry.blobs.store import PART
from loratree_registry.core.paths import ALIAS, BASE, DIGEST, HEAD, MAX_DEPTH, MAX_NUMBER, NUMBER, SEGMENT, START
from loratree_registry.embedded.staged_uploads import MAX_PARTS

Rule = Mapping[str, Any]

_DEEP: Final = f"(/{SEGMENT}){{0,{MAX_DEPTH - 1}}}"
_DEEPER: Final = f"(/{SEGMENT}){{1,{MAX_DEPTH - 1}}}"
_SELECTOR: Final = f"(@({NUMBER}|{START}|{ALIAS}))?"
_LINE: Final = r"[^\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]*"  # no controls, no turns of direction
_JSON_NUMBER: Final = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?"

_A_BASE: Final = {"pattern": f"^{SEGMENT}$"}
_A_BASES_NAME: Final = {**_A_BASE, "examples": [examples.BASE.name]}
_A_PATH: Final = {"pattern": f"^{SEGMENT}{_DEEP}$"}
_A_PATH_BELOW: Final = {"pattern": f"^{SEGMENT}{_DEEPER}$"}
_A_REF: Final = {"pattern": f"^{SEGMENT}{_DEEP}{_SELECTOR}$"}
_A_VERSION: Final = {"pattern": f"^{SEGMENT}{_DEEPER}{_SELECTOR}$"}
_A_FIXED_VERSION: Final = {
    "pattern": f"^{SEGMENT}{_DEEPER}@({NUMBER}|{START})$",
    "examples": [f"{examples.PATH}@{examples.VERSION.number}"],
}
_A_DIGEST: Final = {"pattern": f"^{DIGEST}$"}
_A_NUMBER: Final = {"minimum": 1, "maximum": MAX_NUMBER}
_A_PLACE: Final = {"pattern": r"^[0-9]{1,18}$"}
_A_NUMBER_PLACE: Final = {"pattern": r"^[0-9]{1,9}$"}
_A_SIZE: Final = {"minimum": 0}
_A_REASON: Final = {"pattern": rf"^(?=.*\S){_LINE}$", "maxLength": 1000}

# What a parameter may be, by its name; and by a route and its name, where that route takes something else.
_PARAMETERS: Final[Mapping[str, Rule]] = {
    "path": _A_PATH,
    "ref": _A_VERSION,
    "alias": {"pattern": f"^(?!{HEAD}$){ALIAS}$"},
    "content": _A_DIGEST,
    "sha256": _A_DIGEST,
    "follow": {"pattern": f"^{ALIAS}$"},
    "expected": _A_NUMBER,
    "keep": _A_NUMBER,
    "reason": _A_REASON,
    "weight": {"items": {"type": "string", "pattern": f"^{SEGMENT}{_DEEPER}:{_JSON_NUMBER}$"}},
    "after": _A_PLACE,
}
_NOUNS_OF_BASES: Final = ("bases", "sources", "manifests", "missing", "base-files")
_OF_ROUTES: Final[Mapping[tuple[str, str], Rule]] = {
    **{
        (f"/v1/{noun}/{{path}}", "path"): _A_BASES_NAME
        for noun in ("bases", "sources", "manifests", "missing", "base-files")
    },
    ("/v1/files/{ref}", "ref"): _A_REF,
    ("/v1/damaged/{ref}", "ref"): _A_REF,
    ("delete /v1/version/{ref}", "ref"): _A_FIXED_VERSION,
    ("/v1/withdrawals/{ref}", "ref"): _A_FIXED_VERSION,
    ("/v1/quarantines/{ref}", "ref"): _A_FIXED_VERSION,
    ("/v1/versions/{path}", "path"): _A_PATH_BELOW,
    ("/v1/versions/{path}", "after"): _A_NUMBER_PLACE,
    ("/v1/tombstones/{path}", "after"): _A_NUMBER_PLACE,
    ("/v1/bases", "after"): _A_PATH,
    ("/v1/children/{path}", "after"): _A_PATH,
    ("/v1/descendants/{path}", "after"): _A_PATH,
}
# What a field of a request's body may be, by the record and the field.
_FIELDS: Final[Mapping[tuple[str, str], Rule]] = {
    ("NewBase", "name"): _A_BASE,
    ("NewBase", "source"): {"pattern": f"^{_LINE}$", "maxLength": 1000},
    ("Source", "source"): {"pattern": f"^{_LINE}$", "maxLength": 1000},
    ("Reason", "reason"): _A_REASON,
    ("NewNode", "path"): _A_PATH_BELOW,
    ("FileDigest-Input", "sha256"): _A_DIGEST,
    ("FileDigest-Input", "size"): _A_SIZE,
    ("NewUpload", "sha256"): _A_DIGEST,
    ("NewUpload", "size"): {**_A_SIZE, "maximum": PART * MAX_PARTS},
    ("Keep", "keep"): _A_NUMBER,
    ("Move", "version"): _A_NUMBER,
    ("Move", "expected"): _A_NUMBER,
    ("NewVersion", "note"): {"pattern": f"^{_LINE}$", "maxLength": 2000},
    ("NewVersion", "files"): {"minItems": 1, "maxItems": 1},
    ("NewVersion", "parent"): {"pattern": f"^({BASE}|{SEGMENT}{_DEEP}{_SELECTOR})$"},
}
# What a field of an answer is, by its name and its type; a record that a request has too has its own rules above.
_ANSWERS: Final[Mapping[tuple[str, str], Rule]] = {
    **{
        (name, "string"): _A_DIGEST
        for name in ("base_digest", "child_digest", "composition", "content", "digest", "parent_digest", "sha256")
    },
    **{(name, "string"): {"format": "date-time"} for name in ("at", "created_at", "deleted_at", "updated_at")},
    **{
        (name, "integer"): _A_SIZE
        for name in ("bytes", "descendants", "kept", "modules", "parameters", "parts", "size", "vocabulary_size")
    },
    **{(name, "integer"): _A_NUMBER for name in ("head", "number", "part_size", "version")},
    ("path", "string"): _A_PATH,
    ("base", "string"): _A_BASE,
    ("request_id", "string"): {"maxLength": 100},
}


def add_rules(document: dict[str, Any]) -> None:
    """Write the rules into the document, in place."""
    for schema in document["components"]["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            value = _of_value(field)
            value.update(_ANSWERS.get((name, value.get("type", "")), {}))
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", ()):
                name = parameter["name"]
                of_route = _OF_ROUTES.get((f"{method} {path}", name)) or _OF_ROUTES.get((path, name))
                _of_value(parameter["schema"]).update(of_route or _PARAMETERS.get(name) or {})
    schemas = document["components"]["schemas"]
    for (record, field), rule in _FIELDS.items():
        _of_value(schemas[record]["properties"][field]).update(rule)


def _of_value(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the value itself where null is allowed too."""
    kinds: list[dict[str, Any]] = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
    return kinds[0] if kinds else schema
