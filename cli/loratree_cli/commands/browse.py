"""loratree ls and tree: views of the tree."""

from collections.abc import Iterator
from functools import partial
from typing import Final

import click

from loratree_cli.commands.bases import list_bases as print_bases
from loratree_cli.output import First, every, json_option, limit_option, print_json_list
from loratree_cli.screens.hints import say_no_base, say_no_versions, say_nothing_below
from loratree_cli.screens.tables import Column, print_table
from loratree_cli.screens.trees import aliases_text, grow, node_state, print_trees
from loratree_registry.connect import connected
from loratree_registry.core.records import Node, Page
from loratree_registry.core.registry import MAX_COUNT, MAX_PAGE, Registry, list_bases

_NODES: Final = (
    Column("path", kind="path"),
    Column("level", 2),
    Column("head", 3, "number"),
    Column("aliases", 1, "text"),
    Column("state"),
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
    with connected(reading=True) as opened:
        nodes = First(every(lambda after: opened.children(path, after=after, limit=MAX_PAGE)), limit)
        if as_json:
            print_json_list(nodes)
        elif rows := [_node_row(node) for node in nodes]:
            print_table(_NODES, rows)
        else:
            say_nothing_below(opened.node(path))
    nodes.say_more()


@click.command()
@click.argument("path", required=False)
@click.option(
    "--depth", type=click.IntRange(min=0), metavar="N", help="Draw N levels below PATH, and count the others."
)
@click.option("--all", "is_whole", is_flag=True, help="Draw every node, also of many alike.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"Maximum node count. [default: {MAX_COUNT}; none with --json]",
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
    with connected(reading=True) as opened:
        nodes = First(_walk(opened, path), limit or (None if as_json else MAX_COUNT))
        if as_json:
            print_json_list(nodes)
        else:
            _draw(nodes, depth, is_whole=is_whole)
    nodes.say_more()


def _draw(nodes: First[Node], depth: int | None, *, is_whole: bool) -> None:
    trees: list[tuple[Node, list[Node]]] = []
    for node in nodes:
        if not trees or "/" not in node.path:  # a base, or the node that was asked for
            trees.append((node, []))
        else:
            trees[-1][1].append(node)
    print_trees([grow(root, below) for root, below in trees], depth, is_whole=is_whole, has_more=nodes.has_more)
    if not trees:
        say_no_base()
    elif empty := [root.path for root, below in trees if root.level == "base" and not any(node.head for node in below)]:
        say_no_versions(empty)


def _walk(opened: Registry, path: str | None) -> Iterator[Node]:
    """Yield the node at `path`, or each base's, followed by the nodes below it."""
    for name in [path] if path else [base.name for base in list_bases(opened)]:
        yield opened.node(name)
        yield from every(partial(_page_below, opened, name))


def _page_below(opened: Registry, path: str, after: str | None) -> Page[Node]:
    return opened.descendants(path, after=after, limit=MAX_PAGE)


def _node_row(node: Node) -> tuple[object, ...]:
    return node.path, node.level, node.head, aliases_text(node), node_state(node)
