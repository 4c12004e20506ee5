"""loratree resolve and lineage: what a path composes, and where it comes from."""

import click

from loratree_cli.options import weight_option
from loratree_cli.output import json_option, marks_text, numbers, print_json, print_table, say, short, strict_option
from loratree_cli.registry import registry
from loratree_registry.core.records import Edge, Link, Resolution


@click.command()
@click.argument("ref")
@click.option("--follow", metavar="ALIAS", help="Take each ancestor at this alias where it is set (latest: its head).")
@weight_option
@strict_option
@json_option
def resolve(ref: str, follow: str | None, weights: dict[str, float], strict: bool, as_json: bool) -> None:
    """Show the chain of versions that REF composes, root to leaf.

    Without --follow it is the chain that the leaf was trained on, whatever the tree holds now.

    \b
    loratree resolve tiny/medicine/cardiology
    loratree resolve tiny/medicine/cardiology@3 --follow latest --json
    loratree resolve tiny/medicine/cardiology --weight tiny/medicine=0.5
    """
    with registry() as opened:
        resolution = opened.resolve(ref, follow=follow, weights=weights, strict=strict)
    if as_json:
        print_json(resolution)
        return
    columns = ("version", "level", "rank", "scale", "weight", "trained on", "found", "state", "digest")
    print_table(columns, (_row(resolution, link) for link in resolution.chain))
    say(f"base {resolution.base.name} {resolution.base.digest}")
    click.echo(resolution.composition)


@click.command()
@click.argument("ref")
@json_option
def lineage(ref: str, as_json: bool) -> None:
    """Show what REF was trained on, version by version, up to the base.

    \b
    loratree lineage tiny/medicine/cardiology/diagnosis/alice
    """
    with registry() as opened:
        found = opened.lineage(ref)
    if as_json:
        print_json(found)
        return
    columns = ("version", "trained on", "found", "state", "digest")
    print_table(columns, (_edge(found.base.name, edge) for edge in found.edges))


def _row(resolution: Resolution, link: Link) -> tuple[object, ...]:
    pin = resolution.base.name if link.pin.path is None else f"{link.pin.path}@{link.pin.version}"
    state = _state(link.stale, marks_text(link.withdrawn, None))
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


def _edge(base: str, edge: Edge) -> tuple[object, ...]:
    state = _state(edge.stale, marks_text(edge.withdrawn, edge.quarantined))
    return edge.child, edge.parent or base, edge.found, state, short(edge.child_digest)


def _state(stale: bool, marks: list[str]) -> str:
    """How a version stands for people: what is marked is not called current."""
    return ", ".join((["stale"] if stale else []) + marks) or "current"
