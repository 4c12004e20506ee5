"""loratree ls, tree and show: views of the tree."""

import click

from loratree_cli.output import (
    bytes_text,
    echo,
    every,
    json_option,
    limit_option,
    marks_text,
    numbers,
    pin_text,
    print_json,
    print_table,
    print_tree,
    short,
)
from loratree_registry.connect import connected
from loratree_registry.core.records import Node, Version
from loratree_registry.core.registry import MAX_PAGE, Registry
from loratree_registry.core.text import one_line
from loratree_registry.errors import Unavailable

TREE_LIMIT = 1000


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
        from loratree_cli.commands.bases import list_bases

        list_bases(limit, as_json)
        return
    with connected() as opened:
        nodes = list(every(lambda after: opened.children(path, after=after, limit=MAX_PAGE), limit))
    if as_json:
        print_json(nodes)
        return
    columns = ("path", "level", "head", "aliases")
    print_table(columns, ((node.path, node.level, node.head, _aliases(node)) for node in nodes))


@click.command()
@click.argument("path")
@click.option("--limit", type=click.IntRange(min=1), default=TREE_LIMIT, show_default=True, help="Maximum node count.")
@json_option
def tree(path: str, limit: int, as_json: bool) -> None:
    """Draw the tree below PATH.

    \b
    loratree tree tiny
    """
    with connected() as opened:
        root = opened.node(path)
        nodes = list(every(lambda after: opened.descendants(path, after=after, limit=MAX_PAGE), limit + 1))
    if as_json:
        print_json([root, *nodes[:limit]])
        return
    _draw(root, nodes[:limit], more=len(nodes) > limit)


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
            _show_version(opened.version(ref), as_json)
        else:
            _show_node(opened, ref, as_json)


def _show_node(opened: Registry, path: str, as_json: bool) -> None:
    node = opened.node(path)
    versions = [] if node.level == "base" else list(every(lambda after: opened.versions(path, after=after)))
    tombstones = list(every(lambda after: opened.tombstones(path, after=after)))
    if as_json:
        from dataclasses import asdict

        print_json(asdict(node) | {"versions": [*map(asdict, versions)], "tombstones": [*map(asdict, tombstones)]})
        return
    echo(f"{node.path} ({node.level}){_suffix(node)}")
    columns = ("version", "rank", "scale", "modules", "size", "trained on", "found", "published", "digest", "marks")
    print_table(
        columns,
        (
            (
                version.number,
                numbers(version.summary.ranks),
                numbers(version.summary.scales),
                version.summary.modules,
                bytes_text(version.size),
                pin_text(version),
                version.pin.found,
                version.created_at[:19] + "Z",
                short(version.digest),
                ", ".join(marks_text(version.withdrawn, version.quarantined)),
            )
            for version in versions
        ),
    )
    for tombstone in tombstones:
        barred = f", quarantined: {tombstone.quarantined}" if tombstone.quarantined else ""
        echo(f"@{tombstone.number} was deleted on {tombstone.deleted_at[:10]}: {tombstone.reason}{barred}")


def _show_version(version: Version, as_json: bool) -> None:
    if as_json:
        print_json(version)
        return
    summary = version.summary
    rows = [
        ("version", f"{version.path}@{version.number}"),
        ("level", version.level),
        ("digest", version.digest),
        ("base", f"{version.base} {version.base_digest}"),
        ("trained on", f"{pin_text(version)} ({version.pin.found})"),
        ("rank", numbers(summary.ranks)),
        ("scale", numbers(summary.scales)),
        ("modules", f"{summary.modules} ({', '.join(f'{count} {rule}' for rule, count in summary.rules.items())})"),
        ("parameters", f"{summary.parameters:,} {', '.join(summary.dtypes)}"),
        *((file.name, f"{bytes_text(file.size)} {file.sha256}") for file in version.files),
        ("published", version.created_at),
        ("note", version.note),
        ("withdrawn", version.withdrawn and version.withdrawn.reason),
        ("quarantined", version.quarantined and version.quarantined.reason),
    ]
    print_table(("field", "value"), rows)


def _draw(root: Node, nodes: list[Node], *, more: bool) -> None:
    from rich.markup import escape
    from rich.tree import Tree

    drawn = {root.path: Tree(f"[bold]{escape(one_line(root.path))}[/] [dim]{root.level}[/]{escape(_suffix(root))}")}
    for node in nodes:
        above = drawn.get(node.path.rpartition("/")[0])
        if above is None:
            raise Unavailable(f"the registry lists {node.path[:200]!a} below {root.path[:200]!a}: check the server")
        name = node.path.rpartition("/")[2]
        drawn[node.path] = above.add(f"{escape(one_line(name))} [dim]{node.level}[/]{escape(_suffix(node))}")
    print_tree(drawn[root.path])
    if more:
        echo(f"… and more: these are the first {len(nodes)}, see --limit", err=True)


def _suffix(node: Node) -> str:
    if node.head is None:
        return ""
    return f" @{node.head}" + (f" ({_aliases(node)})" if node.aliases else "")


def _aliases(node: Node) -> str:
    return ", ".join(f"{name}={number}" for name, number in sorted(node.aliases.items()))
