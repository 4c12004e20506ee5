"""loratree show: all of one node, base or version."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import click

from loratree_cli.commands.bases import base_rows
from loratree_cli.output import (
    bytes_text,
    counted,
    echo,
    every,
    json_option,
    numbers,
    pin_text,
    print_json,
    short,
)
from loratree_cli.screens.cards import telling_lines
from loratree_cli.screens.fields import draw_fields
from loratree_cli.screens.hints import say_no_version, say_no_versions
from loratree_cli.screens.kinds import kind_text, kinds_of_version
from loratree_cli.screens.states import State
from loratree_cli.screens.tables import Column, print_table
from loratree_cli.screens.terminal import FAINT, terminal, write_words
from loratree_cli.screens.trees import aliases_text
from loratree_cli.screens.verdicts import newer_head, now_text
from loratree_registry.connect import connected
from loratree_registry.core.documents import CARD
from loratree_registry.core.records import Node, Version
from loratree_registry.core.registry import Registry
from loratree_registry.core.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

_CARD_LINES: Final = 8  # of a model card
_VERSIONS: Final = (
    Column("version", kind="number"),
    Column("kind", 7),
    Column("rank", 8),
    Column("scale", 3),
    Column("modules", 2, "number"),
    Column("size", 5, "number"),
    Column("trained on", 9),
    Column("found", 6),
    Column("published", 4),
    Column("digest", 1),
    Column("state"),
)


@click.command()
@click.argument("ref")
@json_option
def show(ref: str, as_json: bool) -> None:
    """Show the node, the base or the version that REF names.

    \b
    loratree show tiny
    loratree show tiny/medicine
    loratree show tiny/medicine@2 --json
    """
    with connected() as opened:
        if "@" in ref:
            _show_version(opened, opened.version(ref), as_json)
        elif (node := opened.node(ref)).level == "base":
            _show_base(opened, node, as_json)
        else:
            _show_node(opened, node, as_json)


def _show_base(opened: Registry, node: Node, as_json: bool) -> None:
    base = opened.base(node.path)
    if as_json:
        print_json(asdict(node) | {"versions": [], "tombstones": [], "base": asdict(base)})
        return
    below = opened.count(node.path)
    nodes = f"{'more than ' * below.more}{counted(below.descendants, 'node')}"
    _print_fields([*base_rows(base), ("tree", f"{nodes} below" if node.has_children else "empty")])
    if not node.has_children:
        say_no_versions([node.path])


def _show_node(opened: Registry, node: Node, as_json: bool) -> None:
    path = node.path
    versions = list(every(lambda after: opened.versions(path, after=after)))
    tombstones = list(every(lambda after: opened.tombstones(path, after=after)))
    if as_json:
        print_json(asdict(node) | {"versions": [*map(_to_json, versions)], "tombstones": [*map(asdict, tombstones)]})
        return
    console = terminal()
    heading = f"{path} ({node.level}){_suffix(node)}"
    if console is None:
        echo(heading)
    else:
        write_words(console, heading, "bold")
    if console is None or versions:
        heads = _pinned_heads(opened, versions)
        until = len("2026-01-31T09:30:00") if console is None else len("2026-01-31")
        print_table(_VERSIONS, (_version_row(version, heads, until) for version in versions))
    for tombstone in tombstones:
        barred = f", quarantined: {tombstone.quarantined}" if tombstone.quarantined else ""
        line = f"@{tombstone.number} was deleted on {tombstone.deleted_at[:10]}: {tombstone.reason}{barred}"
        if console is None:
            echo(line)
        else:
            write_words(console, line, FAINT)
    if not versions:
        say_no_version(path)


def _to_json(version: Version) -> dict[str, Any]:
    """Return a version's record and its kinds, which its config and its summary tell."""
    return asdict(version) | {"kinds": kinds_of_version(version)}


def _version_row(version: Version, heads: dict[str, int | None], until: int) -> tuple[object, ...]:
    """Return the cells of a version; its time is cut after `until` characters."""
    return (
        version.number,
        kind_text(version),
        numbers(version.summary.ranks),
        numbers(version.summary.scales),
        version.summary.modules,
        bytes_text(version.size),
        pin_text(version.pin, version.base),
        version.pin.found,
        version.created_at[:until] + ("Z" if "T" in version.created_at[:until] else ""),
        short(version.digest),
        _state(version, heads),
    )


def _state(version: Version, heads: dict[str, int | None]) -> State:
    """Return a version's marks, and whether it is stale: `heads` has the head of its pin's node."""
    pin = version.pin
    is_stale = pin.path is not None and heads[pin.path] != pin.version
    return State(stale=is_stale, withdrawn=version.withdrawn, quarantined=version.quarantined, sound="")


def _pinned_heads(opened: Registry, versions: list[Version]) -> dict[str, int | None]:
    """Return the present heads of the nodes that versions are pinned to: the few above them."""
    return {path: opened.node(path).head for path in {version.pin.path for version in versions} if path is not None}


def _show_version(opened: Registry, version: Version, as_json: bool) -> None:
    name = f"{version.path}@{version.number}"
    documents = [] if version.quarantined else opened.documents(name)
    if as_json:
        print_json(_to_json(version) | {"documents": [*map(asdict, documents)]})
        return
    heads = _pinned_heads(opened, [version])
    head = newer_head(version.number, opened.node(version.path).head)
    state = replace(_state(version, heads), head=head, sound="current")
    pin = f"{pin_text(version.pin, version.base)} ({version.pin.found})"
    if state.stale and version.pin.path is not None:
        pin = f"{pin}, {now_text(heads[version.pin.path])}"
    summary = version.summary
    rows: list[tuple[str, object]] = [
        ("version", name),
        ("state", state),
        ("level", version.level),
        ("digest", version.digest),
        ("base", f"{version.base} {version.base_digest}"),
        ("trained on", pin),
        ("kind", kind_text(version)),
        ("rank", numbers(summary.ranks)),
        ("scale", numbers(summary.scales)),
        ("modules", f"{summary.modules} ({', '.join(f'{count} {rule}' for rule, count in summary.rules.items())})"),
        ("parameters", f"{summary.parameters:,} {', '.join(summary.dtypes)}"),
        *((file.name, f"{bytes_text(file.size)} {file.sha256}") for file in version.files),
        ("published", version.created_at),
        ("note", version.note),
        ("documents", ", ".join(document.name for document in documents)),
    ]
    card = next((telling_lines(document.text) for document in documents if document.name == CARD), [])
    _print_fields([*rows, ("card", " ".join(card[:_CARD_LINES]))] if card and not terminal() else rows)
    if (console := terminal()) is not None and card:
        _draw_card(console, name, card)


def _print_fields(rows: list[tuple[str, object]]) -> None:
    """Print fields: at a terminal those that are not empty, in a pipe a line each."""
    console = terminal()
    if console is None:
        print_table((Column("field"), Column("value")), rows)
    else:
        draw_fields(console, rows)


def _draw_card(console: "Console", name: str, lines: list[str]) -> None:
    """Write the first lines of a model card."""
    for line in ("", *lines[:_CARD_LINES]):
        write_words(console, one_line(line))
    if (more := len(lines) - _CARD_LINES) > 0:
        whole = f"`loratree show {name} --json` and `loratree pull {name} --out DIR` give the whole {CARD}"
        write_words(console, f"… {counted(more, 'more line')}: {whole}", FAINT)


def _suffix(node: Node) -> str:
    if node.head is None:
        return ""
    return f" @{node.head}" + (f" ({aliases_text(node)})" if node.aliases else "")
