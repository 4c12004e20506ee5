"""loratree base add, base ls."""

from pathlib import Path

import click

from loratree_cli.output import every, json_option, limit_option, print_json, print_table, say, short, working
from loratree_cli.registry import registry
from loratree_registry.protocol import MAX_PAGE
from loratree_registry.settings import Settings


@click.group()
def base() -> None:
    """Base models: the roots of the trees."""


@base.command("add")
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--source", help="Where it came from, in words: a hub name, say. Nothing ever opens it.")
@json_option
def add(name: str, directory: Path, source: str | None, as_json: bool) -> None:
    """Record the model in DIRECTORY as the base NAME.

    Reads config.json and every tensor's bytes; stores the manifest and the digest, not the weights.

    \b
    loratree base add tiny ./tiny-llama
    loratree base add llama-3.1-8b /models/llama-3.1-8b --source meta-llama/Llama-3.1-8B
    """
    from loratree_composer.base import read_base
    from loratree_registry.locations import remember_base

    with registry() as opened:
        with working(f"reading {directory}"):
            manifest = read_base(directory)
        # First where it lies: a place without a base harms nobody, should the disk be full.
        remember_base(Settings.from_environment().home, manifest.digest, directory)
        added = opened.add_base(name, manifest, source=source)
    if as_json:
        print_json(added)
    else:
        say(f"{added.name} is a {added.architecture} of {added.parameters:,} parameters")
        click.echo(added.digest)


@base.command("ls")
@limit_option
@json_option
def ls(limit: int | None, as_json: bool) -> None:
    """List the bases."""
    list_bases(limit, as_json)


def list_bases(limit: int | None, as_json: bool) -> None:
    """Prints every base, by name."""
    with registry() as opened:
        found = list(every(lambda after: opened.bases(after=after, limit=MAX_PAGE), limit))
    if as_json:
        print_json(found)
        return
    columns = ("name", "architecture", "parameters", "digest", "source")
    print_table(columns, ((b.name, b.architecture, f"{b.parameters:,}", short(b.digest), b.source) for b in found))
