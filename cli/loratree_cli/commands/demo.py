"""loratree demo."""

import sys
from pathlib import Path

import click


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Where it keeps everything.",
)
@click.option("--fresh", is_flag=True, help="Start over instead of going on from what is there.")
def demo(out: Path, fresh: bool) -> None:
    """Grow a small tree of real adapters: train, publish, resolve, compose, and show what each level adds.

    \b
    loratree demo --out ./demo-out
    """
    from loratree_cli.demo.run import run_demo

    sys.exit(run_demo(out, fresh=fresh))
