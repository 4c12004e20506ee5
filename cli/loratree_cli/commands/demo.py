"""loratree demo."""

import sys
from pathlib import Path

import click

from loratree_cli.early_end import Interrupted
from loratree_cli.options import a_path
from loratree_registry.errors import Unavailable


@click.command()
@click.option(
    "--out",
    type=a_path,
    default=Path("demo-out"),
    show_default=True,
    help="The folder for all files of the demo.",
)
@click.option("--fresh", is_flag=True, help="Start again instead of continuing from an earlier run.")
def demo(out: Path, fresh: bool) -> None:
    """Grow a small tree of real adapters: train, publish, resolve, compose, and show what each level adds.

    \b
    loratree demo --out ./demo-out
    """
    try:
        from loratree_cli.demo.run import run_demo

        status = run_demo(out, fresh=fresh)
    except ModuleNotFoundError as error:
        raise Unavailable(f"the demo needs {error.name}: pip install 'loratree[demo]'") from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"the finished parts stay in {out}: the same command goes on without --fresh") from error
    sys.exit(status)
