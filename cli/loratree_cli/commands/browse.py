"""loratree ls, tree and show: views of the tree."""

import re
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from loratree_cli.commands.bases import list_bases as print_bases
from loratree_cli.commands.bases import print_base
from loratree_cli.output import (
    bytes_text,
    counted,
    echo,
    every,
    json_option,
    limit_option,
    numbers,
    pin_text,
    print_json,
    short,
)
from loratree_cli.screens.fields import draw_fields
from loratree_cli.screens.hints import say_no_base, say_no_version, say_no_versions, say_nothing_below
from loratree_cli.screens.states import State
from loratree_cli.screens.tables import Column, print_table
from loratree_cli.screens.terminal import FAINT, terminal, write_words
from loratree_cli.screens.trees import aliases_text, grow, node_state, print_trees
from loratree_cli.screens.verdicts import now_text
from loratree_registry.connect import connected
from loratree_registry.core.documents import CARD
from loratree_registry.core.records import Node, Page, Version
from loratree_registry.core.registry import MAX_COUNT, MAX_PAGE, Registry, list_bases
from loratree_registry.core.text import one_line

if TYPE_CHECKING:
    from rich.console import Console

_CARD_LINES: Final = 20  # of a model card
JSON_LIMIT: Final = 1000  # nodes that tree prints as JSON
_FIELDS: Final = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)  # YAML that a hub reads
_NODES: Final = (
    Column("path", kind="path"),
    Column("level", 2),
    Column("head", 3, "number"),
    Column("aliases", 1, "text"),
    Column("state"),  # not in a pipe
)
_VERSIONS: Final = (
    Column("version", kind="number"),
    Column("rank", 7),
    Column("scale", 4),
    Column("modules", 2, "number"),
    Column("size", 6, "number"),
    Column("trained on", 8),
    Column("found", 3),
    Column("published", 5),
    Column("digest", 1),
    Column("marks"),
)


@click.command()
@click.argument("path", required=False)
@limit_option
@json_option
def ls(path: str | None, limit: int | None, as_json: bool) -> None:
    """List the nodes directly below PATH, or the bases.

    \b
    loratree ls
    loratree ls tiny/medicine --json
    """
    if path is None:
        print_bases(limit, as_json)
        return
    with connected() as opened:
        nodes = list(every(lambda after: opened.children(path, after=after, limit=MAX_PAGE), limit))
        if not nodes and not as_json:
            say_nothing_below(opened.node(path))
    if as_json:
        print_json(nodes)
    elif nodes:
        columns = _NODES[:-1] if terminal() is None else _NODES
        rows = ((node.path, node.level, node.head, aliases_text(node), node_state(node)) for node in nodes)
        print_table(columns, (row[: len(columns)] for row in rows))


@click.command()
@click.argument("path", required=False)
@click.option(
    "--depth", type=click.IntRange(min=0), metavar="N", help="Draw N levels below PATH, and count the others."
)
@click.option("--all", "is_whole", is_flag=True, help="Draw every node, also of many alike.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"Maximum node count. [default: {MAX_COUNT}, {JSON_LIMIT} with --json]",
)
@json_option
def tree(path: str | None, depth: int | None, is_whole: bool, limit: int | None, as_json: bool) -> None:
    """Draw the tree below PATH, or every base's tree.

    At a terminal, a large tree is drawn as deep as a screen or two hold, and of many nodes alike a few; the others are
    counted by their level.

    \b
    loratree tree
    loratree tree tiny --depth 2
    loratree tree tiny/medicine --all
    """
    most = limit or (JSON_LIMIT if as_json else MAX_COUNT)
    trees: list[tuple[Node, list[Node]]] = []
    with connected() as opened:
        room = most + 1
        for name in [path] if path else [base.name for base in list_bases(opened)]:
            trees.append((opened.node(name), list(every(partial(_page_below, opened, name), room))))
            room -= len(trees[-1][1])
            if room <= 0:
                break
    if has_more := room <= 0:
        trees[-1][1].pop()
    if as_json:
        print_json([node for root, nodes in trees for node in (root, *nodes)])
        return
    print_trees([grow(root, nodes) for root, nodes in trees], depth, is_whole=is_whole, has_more=has_more)
    if not trees:
        say_no_base()
    elif empty := [root.path for root, nodes in trees if root.level == "base" and not any(node.head for node in nodes)]:
        say_no_versions(empty)
    if has_more:
        echo(f"… and more: these are the first {most}, see --limit", err=True)


@click.command()
@click.argument("ref")
@json_option
def show(ref: str, as_json: bool) -> None:
    """Show the node or the version that REF names.

    \b
    loratree show tiny/medicine
    loratree show tiny/medicine@2 --json
    """
    with connected() as opened:
        if "@" in ref:
            _show_version(opened, opened.version(ref), as_json)
        else:
            _show_node(opened, ref, as_json)


def _page_below(opened: Registry, path: str, after: str | None) -> Page[Node]:
    return opened.descendants(path, after=after, limit=MAX_PAGE)


def _show_node(opened: Registry, path: str, as_json: bool) -> None:
    node = opened.node(path)
    versions = [] if node.level == "base" else list(every(lambda after: opened.versions(path, after=after)))
    tombstones = list(every(lambda after: opened.tombstones(path, after=after)))
    if as_json:
        print_json(asdict(node) | {"versions": [*map(asdict, versions)], "tombstones": [*map(asdict, tombstones)]})
        return
    console = terminal()
    heading = f"{node.path} ({node.level}){_suffix(node)}"
    if console is None:
        echo(heading)
    else:
        write_words(console, heading, "bold")
    if console is None or versions:
        heads = {} if console is None else _pinned_heads(opened, versions)
        until = len("2026-01-31T09:30:00") if console is None else len("2026-01-31")
        print_table(_VERSIONS, (_version_row(version, heads, until) for version in versions))
    for tombstone in tombstones:
        barred = f", quarantined: {tombstone.quarantined}" if tombstone.quarantined else ""
        line = f"@{tombstone.number} was deleted on {tombstone.deleted_at[:10]}: {tombstone.reason}{barred}"
        if console is None:
            echo(line)
        else:
            write_words(console, line, FAINT)
    if node.level == "base":
        if console is not None:
            print_base(opened.base(path))
        if not node.has_children:
            say_no_versions([path])
    elif not versions:
        say_no_version(path)


def _version_row(version: Version, heads: dict[str, int | None], until: int) -> tuple[object, ...]:
    """Return the cells of a version; its time is cut after `until` characters."""
    return (
        version.number,
        numbers(version.summary.ranks),
        numbers(version.summary.scales),
        version.summary.modules,
        bytes_text(version.size),
        pin_text(version),
        version.pin.found,
        version.created_at[:until] + ("Z" if "T" in version.created_at[:until] else ""),
        short(version.digest),
        _state(version, heads),
    )


def _state(version: Version, heads: dict[str, int | None]) -> State:
    """Return a version's marks, and whether it is stale if `heads` has the head of its pin's node."""
    pin = version.pin
    is_stale = pin.path is not None and pin.path in heads and heads[pin.path] != pin.version
    return State(stale=is_stale, withdrawn=version.withdrawn, quarantined=version.quarantined, sound="")


def _pinned_heads(opened: Registry, versions: list[Version]) -> dict[str, int | None]:
    """Return the present heads of the nodes that versions are pinned to: the few above them."""
    return {path: opened.node(path).head for path in {version.pin.path for version in versions} if path is not None}


def _show_version(opened: Registry, version: Version, as_json: bool) -> None:
    documents = [] if version.quarantined else opened.documents(f"{version.path}@{version.number}")
    if as_json:
        print_json(asdict(version) | {"documents": [*map(asdict, documents)]})
        return
    console = terminal()
    summary, pin = version.summary, f"{pin_text(version)} ({version.pin.found})"
    rows: list[tuple[str, object]] = [
        ("version", f"{version.path}@{version.number}"),
        ("level", version.level),
        ("digest", version.digest),
        ("base", f"{version.base} {version.base_digest}"),
        ("trained on", pin),
        ("rank", numbers(summary.ranks)),
        ("scale", numbers(summary.scales)),
        ("modules", f"{summary.modules} ({', '.join(f'{count} {rule}' for rule, count in summary.rules.items())})"),
        ("parameters", f"{summary.parameters:,} {', '.join(summary.dtypes)}"),
        *((file.name, f"{bytes_text(file.size)} {file.sha256}") for file in version.files),
        ("published", version.created_at),
        ("note", version.note),
        ("documents", ", ".join(document.name for document in documents)),
        ("withdrawn", version.withdrawn and version.withdrawn.reason),
        ("quarantined", version.quarantined and version.quarantined.reason),
    ]
    if console is None:
        print_table(("field", "value"), rows)
        return
    heads = _pinned_heads(opened, [version])
    state = replace(_state(version, heads), sound="current")
    if state.stale and version.pin.path is not None:
        rows[4] = ("trained on", f"{pin}, {now_text(heads[version.pin.path])}")
    draw_fields(console, [rows[0], ("state", state), *rows[1:-2]])  # the state has the reasons of the marks
    for document in documents:
        if document.name == CARD:
            _draw_card(console, document.text)


def _draw_card(console: "Console", text: str) -> None:
    """Write the first lines of a model card, without its fields for a hub and without empty lines at its end."""
    lines = _FIELDS.sub("", text).strip().splitlines()
    for line in ("", *lines[:_CARD_LINES]):
        write_words(console, one_line(line))
    if (more := len(lines) - _CARD_LINES) > 0:
        write_words(console, f"… {counted(more, 'more line')}: --json and `loratree pull` have them", FAINT)


def _suffix(node: Node) -> str:
    if node.head is None:
        return ""
    return f" @{node.head}" + (f" ({aliases_text(node)})" if node.aliases else "")
