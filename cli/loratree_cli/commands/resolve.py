"""loratree resolve and lineage: the chain that a path composes, and the pins behind it."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Final

import click

from loratree_cli.following import say_remarks
from loratree_cli.options import weight_option
from loratree_cli.output import echo, json_option, numbers, pin_text, print_json, say, short, strict_option
from loratree_cli.screens.fields import draw_fields
from loratree_cli.screens.states import State
from loratree_cli.screens.tables import Column, print_table
from loratree_cli.screens.terminal import terminal, write_words
from loratree_cli.screens.verdicts import lineage_verdict, newer_head, resolution_verdict
from loratree_registry.connect import connected
from loratree_registry.core.paths import parse_ref
from loratree_registry.core.records import Lineage, Link, Resolution
from loratree_registry.workspace.remarks import find_others, say_skipped, say_unset

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
        unset = say_unset(opened, resolution, follow)
        say_remarks([unset] if unset else [])
        if as_json:
            print_json(resolution)
            return
        verdict = resolution_verdict(resolution, say_skipped(opened, resolution.chain))
    console, base = terminal(), resolution.base
    if console is None:
        _print_chain(resolution)
        say(f"base {base.name} {base.digest}")
        say(verdict[0])
        echo(resolution.composition)
        return
    if resolution.chain:
        _print_chain(resolution)
        console.print()
    draw_fields(console, [("composition", resolution.composition), ("base", f"{base.name} {base.digest}")])
    write_words(console, *verdict)


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
        if as_json:
            print_json(pins)
            return
        head_of = cache(lambda path: opened.node(path).head)
        verdict = lineage_verdict(pins, opened.ancestry(ref), head_of)
        rows = list(_edge_rows(pins, head_of))
    console = terminal()
    if console is None:
        print_table(_EDGES, rows)
        say(f"base {pins.base.name} {pins.base.digest}")
        say(verdict[0])
        return
    if rows:
        print_table(_EDGES, rows)
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
    others = find_others(resolution.chain)
    print_table(columns, (_link_row(resolution, link, others.get(link.path)) for link in resolution.chain))


def _link_row(resolution: Resolution, link: Link, other: tuple[str, str] | None) -> tuple[object, ...]:
    return (
        f"{link.path}@{link.version}",
        link.level,
        numbers(link.ranks),
        numbers(link.scales),
        numbers([link.weight]),
        pin_text(link.pin, resolution.base.name),
        link.pin.found,
        State(
            stale=link.stale,
            other=_other_text(*other) if other else None,
            head=newer_head(link.version, link.head),
            withdrawn=link.withdrawn,
            follow=link.follow,
        ),
        short(link.digest),
    )


def _other_text(stands: str, trained: str) -> str:
    """Say what a version was trained on and what it stands on, briefly: `trained on @1, not @2`."""
    (above, _, number), (pin, _, pinned) = stands.rpartition("@"), trained.rpartition("@")
    if pin == above:
        return f"trained on @{pinned}, not @{number}"
    return f"trained on {trained.rpartition('/')[2]}, not {stands.rpartition('/')[2]}"


def _edge_rows(lineage: Lineage, head_of: Callable[[str], int | None]) -> Iterator[tuple[object, ...]]:
    """Yield the cells of each edge; a version whose edge below is stale, or that is the leaf, may be older."""
    is_maybe_older = True
    for edge in lineage.edges:
        child = parse_ref(edge.child)
        number = child.selector if is_maybe_older and isinstance(child.selector, int) else None
        head = None if number is None else newer_head(number, head_of(child.path))
        is_maybe_older = edge.stale
        state = State(stale=edge.stale, head=head, withdrawn=edge.withdrawn, quarantined=edge.quarantined)
        yield edge.child, edge.parent or lineage.base.name, edge.found, state, short(edge.child_digest)
