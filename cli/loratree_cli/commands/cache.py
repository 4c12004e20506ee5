"""loratree cache ls and cache prune."""

import re
from typing import TYPE_CHECKING

import click

from loratree_cli.options import parse_time
from loratree_cli.output import bytes_text, counted, echo, json_option, print_json, say, short, time_text
from loratree_cli.progress import working
from loratree_cli.screens.tables import Column, print_table
from loratree_registry.settings import Settings

if TYPE_CHECKING:
    from loratree_registry.workspace.cache import CachedFile

_SIZE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?) ?([KMGT]?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@click.group()
def cache() -> None:
    """Show and free what this machine fetched from a registry; everything in it can be fetched again.

    \b
    loratree cache ls
    loratree cache prune --keep 20GB
    """


@cache.command("ls")
@json_option
def ls(as_json: bool) -> None:
    """List the fetched files, the one that was used last first.

    \b
    loratree cache ls
    """
    from loratree_registry.workspace.cache import list_cached

    home = Settings.from_environment().home
    files = list_cached(home)
    if as_json:
        print_json(files)
        return
    print_table(
        (Column("digest"), Column("size", kind="number"), Column("last used", 1)),
        ((short(file.sha256), bytes_text(file.size), time_text(file.used_at)) for file in files),
    )
    say(f"{counted(len(files), 'file')}, {bytes_text(sum(file.size for file in files))}, in {home / 'cache'}")


@cache.command("prune")
@click.option("--keep", metavar="SIZE", help="Remove the longest unused until this much is left, such as 20GB or 0.")
@click.option("--unused", metavar="TIME", help="Remove what was not used for this time, such as 30d.")
@click.option("--dry-run", is_flag=True, help="List what would be removed, and remove nothing.")
@json_option
def prune(keep: str | None, unused: str | None, dry_run: bool, as_json: bool) -> None:
    """Remove fetched files. Safe while other commands run: what is open stays readable.

    \b
    loratree cache prune --unused 30d
    loratree cache prune --keep 20GB --dry-run
    """
    from loratree_registry.workspace.cache import prune as prune_cache

    if keep is None and unused is None:
        raise click.UsageError("say what may go: --keep SIZE, such as 20GB, or --unused TIME, such as 30d")
    limit, idle = (
        None if keep is None else _parse_size(keep),
        None if unused is None else parse_time("--unused", unused),
    )
    home, done = Settings.from_environment().home, "would be removed" if dry_run else "removed"
    removed: list[CachedFile] = []

    def total() -> str:
        return f"{counted(len(removed), 'file')}, {bytes_text(sum(file.size for file in removed))}, {done}"

    with working(
        "looking through the fetched files", kept=lambda: f"{total()}: the same command goes on"
    ) as on_progress:
        for file in prune_cache(home, keep=limit, unused=idle, dry_run=dry_run, progress=on_progress):
            removed.append(file)
            if not as_json:
                echo(file.sha256)
    if as_json:
        print_json(removed)
    else:
        say(total())


def _parse_size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise click.UsageError(f"--keep is {text[:80]!r}: expected a size, such as 500MB, 20GB or 0")
    return int(float(match[1]) * 1000 ** _POWERS[match[2].upper()])
