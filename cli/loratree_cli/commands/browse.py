"""loratree ls and tree: views of the tree."""

from collections.abc import Iterator
from functools import partial
from typing import Final, get_args

import click

from loratree_cli.commands.bases import list_bases as print_bases
from loratree_cli.output import First, every, json_option, limit_option, numbers, pin_text, print_json_list
from loratree_cli.progress import working
from loratree_cli.screens.hints import say_no_base, say_no_versions, say_nothing_below, say_nothing_like
from loratree_cli.screens.kinds import OPTIONS
from loratree_cli.screens.tables import Column, print_table
from loratree_cli.screens.trees import aliases_text, grow, node_state, print_trees
from loratree_registry.connect import connected
from loratree_registry.core.kinds import Kind
from loratree_registry.core.paths import ancestors_of, base_of
from loratree_registry.core.progress import Counter, Progress, silent
from loratree_registry.core.records import Node, Page, PinSource
from loratree_registry.core.registry import MAX_COUNT, MAX_PAGE, Registry, list_bases

_NODES: Final = (
    Column("path", kind="path"),
    Column("level", 3),
    Column("head", 7, "number"),
    Column("kind", 6),
    Column("rank", 5),
    Column("trained on", 2),
    Column("found", 4),
    Column("aliases", 1, "text"),
    Column("state"),
)


@click.command()
@click.argument("path", required=False)
@click.option("--below", is_flag=True, help="List every node below PATH, at any depth.")
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(list(OPTIONS), case_sensitive=False),
    multiple=True,
    help="List the nodes whose head is of this kind. Repeatable: of all of these kinds.",
)
@click.option(
    "--found",
    type=click.Choice(get_args(PinSource)),
    multiple=True,
    help="List the nodes whose head's pin was found in this way. Repeatable: in one of these ways.",
)
@limit_option
@json_option
def ls(
    path: str | None,
    below: bool,
    kinds: tuple[str, ...],
    found: tuple[PinSource, ...],
    limit: int | None,
    as_json: bool,
) -> None:
    """List the nodes directly below PATH, or the bases.

    The kind, the rank and the pin are those of each node's head; `loratree show PATH` has all versions of a node. The
    registry has no index of kinds: --kind and --found read every node that is listed without them, page by page.

    \b
    loratree ls
    loratree ls tiny/medicine --json
    loratree ls tiny --below --kind dora
    loratree ls tiny --below --found assumed
    """
    if path is None:
        if below or kinds or found:
            raise click.UsageError("--below, --kind and --found go with a PATH, such as the name of a base")
        print_bases(limit, as_json)
        return
    wanted = frozenset(OPTIONS[kind] for kind in kinds)
    with connected() as opened:
        if as_json:
            nodes = First(_choose(opened, path, wanted, found, below=below), limit)
            print_json_list(nodes)
        else:
            with working(f"reading {path}", kept="nothing is changed by reading") as on_progress:
                nodes = First(_choose(opened, path, wanted, found, below=below, progress=on_progress), limit)
                rows = [_node_row(node) for node in nodes]
            _print_nodes(opened, path, rows, below=below, is_filtered=bool(kinds or found))
    nodes.say_more()


def _choose(
    opened: Registry,
    path: str,
    kinds: frozenset[Kind],
    found: tuple[PinSource, ...],
    *,
    below: bool,
    progress: Progress = silent,
) -> Iterator[Node]:
    """Yield the nodes directly below `path`, or all of them, whose head has all of `kinds` and is pinned as `found`."""
    page = opened.descendants if below else opened.children
    counter = Counter(progress, f"reading {path}", 0, "nodes")
    for node in every(lambda after: page(path, after=after, limit=MAX_PAGE)):
        counter.add()
        if kinds <= set(node.kinds) and (not found or (node.pin and node.pin.found) in found):
            yield node


def _print_nodes(
    opened: Registry, path: str, rows: list[tuple[object, ...]], *, below: bool, is_filtered: bool
) -> None:
    if rows:
        print_table(_NODES, rows)
    elif (node := opened.node(path)).has_children and is_filtered:
        say_nothing_like(node, below=below)
    else:
        say_nothing_below(node)


@click.command()
@click.argument("path", required=False)
@click.option(
    "--depth", type=click.IntRange(min=0), metavar="N", help="Draw N levels below PATH, and count the others."
)
@click.option("--all", "is_whole", is_flag=True, help="Draw every node, also of many alike and deleted ones.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"Maximum node count. [default: {MAX_COUNT}; none with --json]",
)
@json_option
def tree(path: str | None, depth: int | None, is_whole: bool, limit: int | None, as_json: bool) -> None:
    """Draw the tree below PATH, or every base's tree.

    At a terminal, a large tree is drawn as deep as a screen or two hold, and of many nodes alike a few; the others are
    counted by their level. Nodes whose versions were all deleted are hidden and counted.

    \b
    loratree tree
    loratree tree tiny --depth 2
    loratree tree tiny/medicine --all
    """
    with connected() as opened:
        nodes = First(_walk(opened, path), limit or (None if as_json else MAX_COUNT))
        if as_json:
            print_json_list(nodes)
        else:
            _draw(opened, nodes, depth, is_whole=is_whole)
    nodes.say_more()


def _draw(opened: Registry, nodes: First[Node], depth: int | None, *, is_whole: bool) -> None:
    trees: list[tuple[Node, list[Node]]] = []
    for node in nodes:
        if not trees or "/" not in node.path:  # a base, or the node that was asked for
            trees.append((node, []))
        else:
            trees[-1][1].append(node)
    grown = [grow(root, below, _find_above(opened, root.path)) for root, below in trees]
    print_trees(grown, depth, is_whole=is_whole, has_more=nodes.has_more)
    if not trees:
        say_no_base()
    elif empty := [root.path for root, below in trees if root.level == "base" and not any(node.head for node in below)]:
        say_no_versions(empty)


def _find_above(opened: Registry, path: str) -> str | None:
    """Return the path of the nearest node above `path` that has a head, or None."""
    return next((above for above in reversed(ancestors_of(path)[1:]) if opened.node(above).head is not None), None)


def _walk(opened: Registry, path: str | None) -> Iterator[Node]:
    """Yield the node at `path`, or each base's, followed by the nodes below it."""
    for name in [path] if path else [base.name for base in list_bases(opened)]:
        yield opened.node(name)
        yield from every(partial(_page_below, opened, name))


def _page_below(opened: Registry, path: str, after: str | None) -> Page[Node]:
    return opened.descendants(path, after=after, limit=MAX_PAGE)


def _node_row(node: Node) -> tuple[object, ...]:
    return (
        node.path,
        node.level,
        node.head,
        ", ".join(node.kinds),
        numbers(node.ranks),
        node.pin and pin_text(node.pin, base_of(node.path)),
        node.pin and node.pin.found,
        aliases_text(node),
        node_state(node),
    )
