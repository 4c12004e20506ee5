"""loratree delete and retain: versions that go for good."""

from collections.abc import Iterator

import click

from loratree_cli.output import bytes_text, counted, every, json_option, print_json, say
from loratree_cli.registry import registry
from loratree_registry.core.records import Retained
from loratree_registry.core.registry import MAX_PAGE, Registry


@click.command()
@click.argument("ref")
@click.option("--reason", metavar="TEXT", required=True, help="Why, in a line.")
@json_option
def delete(ref: str, reason: str, as_json: bool) -> None:
    """Delete the version that REF names by its number or digest; a tombstone with the reason stays.

    Its number is never used again. Refused while a version is pinned to it or an alias names it. Its bytes are
    collected by `loratree gc` once nothing else needs them.

    \b
    loratree delete tiny/medicine@2 --reason "published by mistake"
    """
    with registry() as opened:
        left = opened.delete(ref, reason=reason)
    if as_json:
        print_json(left)
    else:
        say(f"{left.path}@{left.number} is deleted: {left.reason}")


@click.command()
@click.argument("path")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", required=True, help="Keep a node's newest N versions.")
@click.option("--below", is_flag=True, help="At the nodes below PATH too.")
@click.option("--dry-run", is_flag=True, help="Tell what would be deleted, and delete nothing.")
@json_option
def retain(path: str, keep: int, below: bool, dry_run: bool, as_json: bool) -> None:
    """Delete the versions at PATH that nothing needs: all but the newest N, the head, and what an alias names or a pin.

    One transaction a node. What only a version deleted in the same run was pinned to is left to the next run.

    \b
    loratree retain tiny/medicine --keep 5 --dry-run
    loratree retain tiny --keep 5 --below
    """
    with registry() as opened:
        done = [one for one in _retained(opened, path, keep, below, dry_run) if one.deleted]
    if as_json:
        print_json(done)
        return
    for one in done:
        click.echo(f"{one.path}\t{', '.join(map(str, one.deleted))}")
    count, size = sum(len(one.deleted) for one in done), bytes_text(sum(one.bytes for one in done))
    be = "would be" if dry_run else "is" if count == 1 else "are"
    say(f"{counted(count, 'version')} {be} deleted, {size}; `loratree gc` collects their bytes")


def _retained(opened: Registry, path: str, keep: int, below: bool, dry_run: bool) -> Iterator[Retained]:
    """What became of each node, those below `path` first."""
    root = opened.node(path)
    nodes = every(lambda after: opened.descendants(path, after=after, limit=MAX_PAGE)) if below else iter(())
    for node in (*nodes, root):
        yield opened.retain(node.path, keep=keep, dry_run=dry_run)
