"""loratree pull."""

from pathlib import Path

import click

from loratree_cli.options import a_path
from loratree_cli.output import echo, json_option, print_json, say, strict_option
from loratree_cli.progress import at_out, is_there, working
from loratree_registry.connect import connected
from loratree_registry.settings import Settings


@click.command()
@click.argument("ref")
@click.option("--out", type=a_path, required=True, help="The folder to write; new or empty.")
@strict_option
@json_option
def pull(ref: str, out: Path, strict: bool, as_json: bool) -> None:
    """Download the version that REF names as a PEFT directory: its own adapter, without its ancestors.

    \b
    loratree pull tiny/medicine@1 --out ./medicine-adapter
    """
    from loratree_registry.workspace.fetch import pull as pull_version

    home = Settings.from_environment().home
    kept = at_out(out, "a file that arrived whole is kept: run the same command again")
    was_there = is_there(out)
    with connected() as opened, working(f"pulling {ref}", kept=kept) as on_progress:
        version = pull_version(opened, home, ref, out, strict=strict, progress=on_progress)
    if as_json:
        print_json(version)
        return
    say(f"{version.path}@{version.number} is in {out}" + (", as it was before, and is whole" if was_there else ""))
    echo(version.digest)
