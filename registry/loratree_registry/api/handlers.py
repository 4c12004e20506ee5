"""Error handlers: every failure, ours or the framework's, becomes a problem document."""

from collections.abc import Mapping
from dataclasses import replace

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import Scope

from loratree_registry.api.log.requests import asked_in, note_cause
from loratree_registry.errors import Invalid, LoratreeError, listed
from loratree_registry.wire.problem import MEDIA_TYPE, Problem, internal, problem_of, refused

_JSON = TypeAdapter(Problem)


def add_handlers(app: FastAPI) -> None:
    """Register a handler for each kind of failure, unexpected exceptions included."""
    app.add_exception_handler(LoratreeError, _answer_loratree_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(Exception, _answer_bug)


def respond(document: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response that holds a problem document."""
    return Response(_JSON.dump_json(document, exclude_none=True), document.status, headers, MEDIA_TYPE)


def respond_to(scope: Scope, document: Problem) -> Response:
    """Return a response that holds a problem. One by the server's fault names the request; its line tells the cause."""
    asked = asked_in(scope)
    if document.status < 500 or asked is None:
        return respond(document)
    note_cause(asked, document.detail)
    return respond(replace(document, request_id=asked.id))


def path_of(request: Request) -> str:
    """Return the request's path as the client wrote it, percent-encoded."""
    raw: bytes = request.scope.get("raw_path") or request.url.path.encode()
    return raw.decode("ascii", "replace")


def _answer_loratree_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LoratreeError)
    return respond_to(request.scope, problem_of(error, path_of(request)))


def _answer_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    reasons = [_describe(fault["loc"], fault["type"], fault["msg"], fault.get("ctx", {})) for fault in error.errors()]
    sentence = f"the request is not what {request.method} {path_of(request)} takes: {listed(reasons)}"
    return respond(problem_of(Invalid(sentence), path_of(request)))


def _describe(place: tuple[str | int, ...], kind: str, message: str, context: dict[str, object]) -> str:
    name = ".".join(str(part) for part in place[1:]) or f"the {place[0]}"
    if kind == "json_invalid":
        return f"its body is not JSON ({context.get('error')})"
    if place == ("body",) and kind != "many":
        return f"its body: {message}, send a JSON object as application/json"
    return f"{name}: {message}"


def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = error.headers if error.status_code != 405 else {"Allow": ", ".join(_list_methods(request))}
    return respond(refused(error.status_code, request.method, path_of(request), str(error.detail)), headers)


def _list_methods(request: Request) -> list[str]:
    """Return every method that the request's path takes; the framework names those of one route only."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    taken = {
        method for route in routes if route.path_regex.match(request.scope["path"]) for method in route.methods or ()
    }
    return sorted(taken | ({"HEAD"} if "GET" in taken else set()))


def _answer_bug(request: Request, _: Exception) -> Response:
    return respond_to(request.scope, internal(path_of(request)))
