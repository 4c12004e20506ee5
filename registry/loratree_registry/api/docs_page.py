"""The API's description as one page for people, made from the OpenAPI document.

The page has no script and loads nothing, so it works without the internet and under the strictest policy.
"""

import hashlib
import json
from base64 import b64encode
from html import escape
from typing import Any, Final

_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "body{color:#222;background:#fff}"
    "code,pre{font:14px/1.4 ui-monospace,monospace}pre{background:#f4f4f4;padding:.6rem;overflow:auto;max-height:24rem}"
    "h2{border-bottom:1px solid #ccc;margin-top:2.5rem}h3 b{display:inline-block;min-width:4.5rem}"
    "table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.2rem .8rem .2rem 0}"
    "summary{cursor:pointer}a{color:#0645ad}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#262626}a{color:#8ab4f8}}"
)
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page(title: str, body: str) -> str:
    """Return a whole page in the one style that the policy allows."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n{body}\n</html>\n"
    )


def describe(document: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document: each route with its parameters, and an example of each answer."""
    about, tags = document["info"], _by_tag(document)
    parts = [
        f"<h1>{escape(about['title'])} {escape(about['version'])}</h1>",
        f'<p>{escape(about["description"])} For programs: <a href="/openapi.json">/openapi.json</a>.</p>',
        "<p>" + " · ".join(f'<a href="#{escape(tag)}">{escape(tag)}</a>' for tag in [*tags, "records"]) + "</p>",
    ]
    for tag, operations in tags.items():
        parts += [f'<h2 id="{escape(tag)}">{escape(tag)}</h2>', *operations]
    parts.append('<h2 id="records">records</h2>')
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(
            f'<details id="record-{escape(name)}"><summary><code>{escape(name)}</code> '
            f"{escape(schema.get('description', '').partition(chr(10))[0])}</summary>{_shown(schema)}</details>"
        )
    return page(about["title"], "\n".join(parts))


def _by_tag(document: dict[str, Any]) -> dict[str, list[str]]:
    tags: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tags.setdefault(operation["tags"][0], []).append(_describe_operation(method, path, operation))
    return tags


def _describe_operation(method: str, path: str, operation: dict[str, Any]) -> str:
    name = escape(operation["operationId"])
    parts = [f'<h3 id="{name}"><b>{method.upper()}</b> <code>{escape(path)}</code></h3>']
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in operation["description"].split("\n\n")]
    if rows := [_describe_parameter(parameter) for parameter in operation.get("parameters", ())]:
        parts.append(f"<table>{''.join(rows)}</table>")
    parts += _describe_content("the request's body", operation.get("requestBody", {}))
    for status, answer in operation["responses"].items():
        parts += _describe_content(f"{status}: {answer['description']}", answer) or [
            f"<p>{escape(status)}: {escape(answer['description'])}</p>"
        ]
    return "\n".join(parts)


def _describe_parameter(parameter: dict[str, Any]) -> str:
    needed = "needed" if parameter.get("required") else ""
    example = next(iter(parameter["schema"].get("examples", ())), "")
    cells = [parameter["in"], needed, parameter.get("description", ""), json.dumps(example) if example else ""]
    columns = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f"<tr><th><code>{escape(parameter['name'])}</code></th>{columns}</tr>"


def _describe_content(title: str, place: dict[str, Any]) -> list[str]:
    parts = []
    for kind, media in place.get("content", {}).items():
        named = [example["value"] for example in media.get("examples", {}).values()] or [None]
        summary = f"{escape(title)} ({escape(kind)}{_link(media.get('schema', {}))})"
        parts.append(f"<details><summary>{summary}</summary>{_shown(media.get('example', named[0]))}</details>")
    return parts


def _link(schema: dict[str, Any]) -> str:
    name = escape(schema.get("$ref", "").rpartition("/")[2])
    return f', <a href="#record-{name}">{name}</a>' if name else ""


def _shown(value: Any) -> str:
    return "" if value is None else f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"
