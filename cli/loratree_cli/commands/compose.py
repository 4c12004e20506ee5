"""loratree compose."""

from math import floor
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from loratree_cli.following import say_remarks
from loratree_cli.guesses import ModeType
from loratree_cli.options import a_path, limit_options, weight_option
from loratree_cli.output import echo, json_option, numbers, print_json, say, strict_option
from loratree_cli.progress import at_out, is_there, working
from loratree_registry.connect import connected
from loratree_registry.core.chain import Limit, Mode, Step
from loratree_registry.settings import Settings

if TYPE_CHECKING:
    from loratree_composer.flatten.compression import Compression


@click.command()
@click.argument("ref")
@click.option("--mode", type=ModeType(get_args(Mode)), required=True, help="A whole model, or one adapter.")
@click.option("--out", type=a_path, required=True, help="The folder to write; new or empty.")
@click.option(
    "--base",
    "base_directory",
    type=a_path,
    help="The base's checkpoint on this machine.",
)
@click.option("--follow", metavar="ALIAS", help="Take each ancestor at this alias if it is set (latest: its head).")
@weight_option
@limit_options
@strict_option
@json_option
def compose(
    ref: str,
    mode: Mode,
    out: Path,
    base_directory: Path | None,
    follow: str | None,
    weights: dict[str, float],
    limit: Limit | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Compose the chain of REF into the folder --out, with its lockfile loratree.json.

    merge writes the base with every delta added, as transformers loads it. flatten writes one ordinary PEFT adapter
    that equals the whole chain; --rank or --energy writes its nearest adapter of smaller rank. A base alone can be
    composed too: train the first level on it.

    \b
    loratree compose tiny/medicine --mode merge --out ./medicine
    loratree compose tiny/medicine/cardiology --mode flatten --out ./cardiology-adapter
    loratree compose tiny/medicine/cardiology --mode flatten --out ./small-adapter --rank 32
    loratree compose tiny/medicine/cardiology --mode merge --out ./halved --weight tiny/medicine=0.5
    """
    if limit is not None and mode != "flatten":
        raise click.UsageError(f"--rank and --energy go with --mode flatten, got --mode {mode}")
    kept = at_out(out, "adapters that were fetched are kept: run the same command again")
    again = "; it was there already, and is whole" if is_there(out) else ""
    with connected() as opened, working(f"composing {ref}", kept=kept) as on_progress:
        from loratree_composer import compose as compose_files
        from loratree_composer.flatten.compression import read_compression

        lockfile = compose_files(
            opened,
            ref,
            mode,
            out,
            home=Settings.from_environment().home,
            base_directory=base_directory,
            follow=follow,
            weights=weights,
            limit=limit,
            strict=strict,
            progress=on_progress,
            on_remarks=say_remarks,
        )
        compression = read_compression(out) if limit is not None else None
    if as_json:
        print_json(lockfile.to_json() | ({"compression": compression.to_json()} if compression else {}))
        return
    say(f"{out}: {' + '.join([lockfile.chain.base, *map(_term, lockfile.chain.steps)])}{again}")
    if compression is not None:
        say(_describe_compression(compression))
    echo(lockfile.chain.digest)


def _term(step: Step) -> str:
    weight = "" if step.weight == 1 else f"{numbers([step.weight])} × "
    return f"{weight}{step.path}@{step.version}"


def _describe_compression(compression: "Compression") -> str:
    least = compression.least
    worst = "" if least is None else f", at least {_percent(least.energy)} of a module's ({least.name})"
    return f"{compression.limit}: {_percent(compression.energy)} of the energy is kept{worst}"


def _percent(share: float) -> str:
    """Format a share rounded down, so that only the whole reads 100 %."""
    return f"{floor(share * 1e4) / 100:g} %"
