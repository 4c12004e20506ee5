"""loratree resolve and lineage: the chain that a path composes, and the pins behind it."""

import click

from loratree_cli.following import warn_if_unset
from loratree_cli.options import weight_option
from loratree_cli.output import (
    echo,
    json_option,
    marks_text,
    numbers,
    print_json,
    print_table,
    say,
    short,
    strict_option,
)
from loratree_registry.connect import connected
from loratree_registry.core.records import Edge, Link, Resolution


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
    columns = ("version", "level", "rank", "scale", "weight", "trained on", "found", "state", "digest")
    print_table(columns, (_link_row(resolution, link) for link in resolution.chain))
    say(f"base {resolution.base.name} {resolution.base.digest}")
    echo(resolution.composition)


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
    columns = ("version", "trained on", "found", "state", "digest")
    print_table(columns, (_edge_row(pins.base.name, edge) for edge in pins.edges))


def _link_row(resolution: Resolution, link: Link) -> tuple[object, ...]:
    pin = resolution.base.name if link.pin.path is None else f"{link.pin.path}@{link.pin.version}"
    state = _describe_state(link.stale, marks_text(link.withdrawn, None))
    if link.follow is not None:
        state += f", by {link.follow}"
    return (
        f"{link.path}@{link.version}",
        link.level,
        numbers(link.ranks),
        numbers(link.scales),
        numbers([link.weight]),
        pin,
        link.pin.found,
        state,
        short(link.digest),
    )


def _edge_row(base: str, edge: Edge) -> tuple[object, ...]:
    state = _describe_state(edge.stale, marks_text(edge.withdrawn, edge.quarantined))
    return edge.child, edge.parent or base, edge.found, state, short(edge.child_digest)


def _describe_state(stale: bool, marks: list[str]) -> str:
    """Format a version's state for people: `current` only if it is neither stale nor marked."""
    return ", ".join((["stale"] if stale else []) + marks) or "current"
