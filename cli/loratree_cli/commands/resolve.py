"""loratree resolve and lineage: the chain that a path composes, and the pins behind it."""

from typing import Final

import click

from loratree_cli.following import warn_if_unset
from loratree_cli.options import weight_option
from loratree_cli.output import echo, json_option, numbers, print_json, say, short, strict_option
from loratree_cli.screens.fields import draw_fields
from loratree_cli.screens.states import State
from loratree_cli.screens.tables import Column, print_table
from loratree_cli.screens.terminal import terminal, write_words
from loratree_cli.screens.verdicts import lineage_verdict, resolution_verdict
from loratree_registry.connect import connected
from loratree_registry.core.records import Edge, Link, Resolution

_EDGES: Final = (
    Column("version", kind="path"),
    Column("trained on", 3),
    Column("found", 2),
    Column("state"),
    Column("digest", 1),
)


@click.command()
@click.argument("ref")
@click.option("--follow", metavar="ALIAS", help="Take each ancestor at this alias if it is set (latest: its head).")
@weight_option
@strict_option
@json_option
def resolve(ref: str, follow: str | None, weights: dict[str, float], strict: bool, as_json: bool) -> None:
    """Show the chain of versions that REF composes, root to leaf.

    Without --follow it is the chain that the leaf was trained on, even if the tree has newer versions.

    \b
    loratree resolve tiny/medicine/cardiology
    loratree resolve tiny/medicine/cardiology@3 --follow latest --json
    loratree resolve tiny/medicine/cardiology --weight tiny/medicine=0.5
    """
    with connected() as opened:
        resolution = opened.resolve(ref, follow=follow, weights=weights, strict=strict)
        warn_if_unset(opened, ref, follow)
    if as_json:
        print_json(resolution)
        return
    console, base = terminal(), resolution.base
    if console is None:
        _print_chain(resolution)
        say(f"base {base.name} {base.digest}")
        echo(resolution.composition)
        return
    if resolution.chain:
        _print_chain(resolution)
        console.print()
    draw_fields(console, [("composition", resolution.composition), ("base", f"{base.name} {base.digest}")])
    write_words(console, *resolution_verdict(resolution))


@click.command()
@click.argument("ref")
@json_option
def lineage(ref: str, as_json: bool) -> None:
    """Show what REF was trained on, version by version, up to the base.

    \b
    loratree lineage tiny/medicine/cardiology/diagnosis/alice
    """
    with connected() as opened:
        pins = opened.lineage(ref)
        console = None if as_json else terminal()
        if console is not None:
            verdict = lineage_verdict(pins, opened.ancestry(ref), lambda path: opened.node(path).head)
    if as_json:
        print_json(pins)
        return
    if console is None or pins.edges:
        print_table(_EDGES, (_edge_row(pins.base.name, edge) for edge in pins.edges))
    if console is not None:
        console.print()
        draw_fields(console, [("base", f"{pins.base.name} {pins.base.digest}")])
        write_words(console, *verdict)


def _print_chain(resolution: Resolution) -> None:
    is_weighted = any(link.weight != 1 for link in resolution.chain)
    columns = (
        Column("version", kind="path"),
        Column("level", 6),
        Column("rank", 7),
        Column("scale", 5),
        Column("weight", 8 if is_weighted else 4),
        Column("trained on", 3),
        Column("found", 2),
        Column("state"),
        Column("digest", 1),
    )
    print_table(columns, (_link_row(resolution, link) for link in resolution.chain))


def _link_row(resolution: Resolution, link: Link) -> tuple[object, ...]:
    pin = resolution.base.name if link.pin.path is None else f"{link.pin.path}@{link.pin.version}"
    return (
        f"{link.path}@{link.version}",
        link.level,
        numbers(link.ranks),
        numbers(link.scales),
        numbers([link.weight]),
        pin,
        link.pin.found,
        State(stale=link.stale, withdrawn=link.withdrawn, follow=link.follow),
        short(link.digest),
    )


def _edge_row(base: str, edge: Edge) -> tuple[object, ...]:
    state = State(stale=edge.stale, withdrawn=edge.withdrawn, quarantined=edge.quarantined)
    return edge.child, edge.parent or base, edge.found, state, short(edge.child_digest)
