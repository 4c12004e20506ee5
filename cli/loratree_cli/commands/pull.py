"""loratree pull."""

from pathlib import Path

import click

from loratree_cli.options import a_path
from loratree_cli.output import echo, say, strict_option, working
from loratree_registry.connect import connected
from loratree_registry.settings import Settings


@click.command()
@click.argument("ref")
@click.option("--out", type=a_path, required=True, help="The folder to write; new or empty.")
@strict_option
def pull(ref: str, out: Path, strict: bool) -> None:
    """Download the version that REF names as a PEFT directory: its own adapter, without its ancestors.

    \b
    loratree pull tiny/medicine@1 --out ./medicine-adapter
    """
    from loratree_registry.workspace.fetch import pull as pull_version

    with connected() as opened, working(f"pulling {ref}"):
        version = pull_version(opened, Settings.from_environment().home, ref, out, strict=strict)
    say(f"{version.path}@{version.number} is in {out}")
    echo(version.digest)
