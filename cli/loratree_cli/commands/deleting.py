"""loratree delete, retain and rm: deletion of versions, and removal of empty nodes."""

from collections.abc import Iterator

import click

from loratree_cli.options import check_given
from loratree_cli.output import bytes_text, counted, echo, every, json_option, print_json, say
from loratree_cli.progress import working
from loratree_registry.connect import connected
from loratree_registry.core.records import Retained
from loratree_registry.core.registry import MAX_PAGE, Registry


@click.command()
@click.argument("ref")
@click.option("--reason", metavar="TEXT", default="", help="Why, in one line; required.")
@json_option
def delete(ref: str, reason: str, as_json: bool) -> None:
    """Delete the version that REF names by its number or digest; a tombstone with the reason stays.

    The number is never used again. Refused while a version is pinned to this one or an alias names it. `loratree gc`
    removes the bytes once nothing else needs them.

    \b
    loratree delete tiny/medicine@2 --reason "published by mistake"
    """
    check_given("delete", ref, None if reason else "--reason TEXT")
    with connected() as opened:
        tombstone = opened.delete(ref, reason=reason)
    if as_json:
        print_json(tombstone)
    else:
        say(f"{tombstone.path}@{tombstone.number} is deleted: {tombstone.reason}")


@click.command()
@click.argument("path")
@json_option
def rm(path: str, as_json: bool) -> None:
    """Remove the node PATH if it is empty: it has no children, no versions, and no tombstones.

    \b
    loratree rm tiny/medicin
    """
    with connected() as opened:
        removed = opened.node(path) if as_json else None
        opened.remove_node(path)
    if removed is not None:
        print_json(removed)
    else:
        say(f"{path} is removed")


@click.command()
@click.argument("path")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", required=True, help="Keep a node's newest N versions.")
@click.option("--below", is_flag=True, help="At the nodes below PATH too.")
@click.option("--dry-run", is_flag=True, help="List what would be deleted, and delete nothing.")
@json_option
def retain(path: str, keep: int, below: bool, dry_run: bool, as_json: bool) -> None:
    """Delete the versions at PATH that are not the newest N, the head, or named by an alias or a pin.

    A version pinned only by versions deleted in this run is deleted by the next run.

    \b
    loratree retain tiny/medicine --keep 5 --dry-run
    loratree retain tiny --keep 5 --below
    """
    kept = "what was deleted stays deleted: the same command goes on"
    with connected() as opened, working(f"looking through {path}", kept=kept):
        nodes = [node for node in _retain_each(opened, path, keep, below, dry_run) if node.deleted]
    if as_json:
        print_json(nodes)
        return
    for node in nodes:
        echo(f"{node.path}\t{', '.join(map(str, node.deleted))}")
    count, size = sum(len(node.deleted) for node in nodes), bytes_text(sum(node.bytes for node in nodes))
    be = "would be" if dry_run else "is" if count == 1 else "are"
    say(f"{counted(count, 'version')} {be} deleted, {size}; `loratree gc` collects their bytes")


def _retain_each(opened: Registry, path: str, keep: int, below: bool, dry_run: bool) -> Iterator[Retained]:
    """Retain at each node with more than `keep` versions and yield its result, the nodes below `path` first."""
    if not below:
        yield opened.retain(path, keep=keep, dry_run=dry_run)
        return
    crowded = every(lambda after: opened.crowded(path, keep=keep, after=after, limit=MAX_PAGE))
    for node in sorted(crowded, key=lambda node: node.path == path):
        yield node if dry_run else opened.retain(node.path, keep=keep)
