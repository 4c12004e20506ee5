"""Declarations for the OpenAPI document: parameters, examples, and the problems that a route may answer with."""

from typing import Annotated, Any

from fastapi import Body, Depends, Path, Query, Request

from loratree_registry.api.examples import PATH, REF, as_json
from loratree_registry.core.registry import MAX_PAGE, PAGE, Registry
from loratree_registry.errors import Conflict, Corrupt, Gone, Invalid, LoratreeError, NotFound, Quarantined, Unavailable
from loratree_registry.wire.problem import MEDIA_TYPE, problem_of, refused

_DIGEST = "sha256:" + "d" * 64
_SENTENCES: dict[str, LoratreeError] = {
    "404": NotFound(f"{PATH} has no version 7: it has 1 to 2, and the aliases stable"),
    "409": Conflict(f"the alias stable of {PATH} is at version 2, expected at version 1: look again, then decide"),
    "403": Quarantined(
        f"{REF} cannot be used: {PATH}@2 is quarantined (trained on names of patients); name another version, "
        f"or once it is safe end it by `loratree quarantine {PATH}@2 --undo`"
    ),
    "410": Gone(f"{PATH}@1 was deleted on 2026-01-31 (it diverges): name another version, see `loratree show {PATH}`"),
    "422": Invalid("path 'Llama' has the segment 'Llama': use lower case, such as 'llama'"),
    "500": Corrupt(
        f"the 84000000 bytes of {_DIGEST} are recorded as stored, and the blob store does not hold them: "
        "restore it from a backup, or upload the file again"
    ),
    "503": Unavailable(
        "the disk of /srv/blobs is full: needs 84000000 bytes, 4096 are free; free some space or set LORATREE_BLOBS"
    ),
}
_TITLES = {
    "404": "Nothing has this name",
    "403": "A version that the request needs is quarantined",
    "409": "The request contradicts what the registry holds",
    "410": "The version was deleted",
    "422": "The request itself is wrong",
    "500": "Stored bytes are damaged, or the server failed",
    "503": "A part that the request needs is unavailable",
    "default": "Any other refusal",
}


async def _get_registry(request: Request) -> Registry:
    registry: Registry = request.app.state.registry
    return registry


ServedRegistry = Annotated[Registry, Depends(_get_registry)]
NodePath = Annotated[str, Path(description="base/segment/…", examples=[PATH])]
RefPath = Annotated[str, Path(description="PATH or PATH@SELECTOR: a number, an alias or a digest", examples=[REF])]
After = Annotated[str | None, Query(description="The `next` of the previous page")]
# The registry checks the limit, so the error is the same in process and over HTTP.
PageLimit = Annotated[
    int, Query(description="Return at most this many items", json_schema_extra={"minimum": 1, "maximum": MAX_PAGE})
]
PAGE_LIMIT = PAGE


def body(value: Any) -> Any:
    """Declare a request's body, with `value` as its example."""
    return Body(openapi_examples={"usual": {"summary": "A usual request", "value": as_json(value)}})


def answers(value: Any, *problems: int, status: int = 200, says: str = "Done") -> dict[int | str, dict[str, Any]]:
    """Declare an answer, with `value` as its example, and the problems that may come instead."""
    content = {} if value is None else {"content": {"application/json": {"example": as_json(value)}}}
    return {status: {"description": says, **content}} | refusals(*problems)


def refusals(*problems: int) -> dict[int | str, dict[str, Any]]:
    """Declare the problems of a route; every route may also answer 422, 500, 503 and the framework's own refusals."""
    codes: list[int | str] = [*sorted({*problems, 422, 500, 503}), "default"]
    return {code: _describe_refusal(str(code)) for code in codes}


def _describe_refusal(code: str) -> dict[str, Any]:
    place = f"/v1/nodes/{PATH}"
    problem = refused(405, "PATCH", place, "") if code == "default" else problem_of(_SENTENCES[code], place)
    example = as_json(problem)
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": _TITLES[code], "content": {MEDIA_TYPE: {"schema": schema, "example": example}}}
