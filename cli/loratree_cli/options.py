"""Options that several commands share: paths of this machine, --weight PATH=NUMBER, --rank and --energy."""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import click

from loratree_registry.core.chain import Limit
from loratree_registry.core.times import parse_duration
from loratree_registry.disk.plain_files import expand_home
from loratree_registry.errors import Invalid


class _PathOfThisMachine(click.Path):
    """A file or folder. Click refuses one that may not be read in four lines; the commands do in a sentence."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, readable=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Expand `~`, which no shell does in --out=~/folder."""
        return expand_home(Path(os.fsdecode(super().convert(value, param, ctx))))


a_path = _PathOfThisMachine()


def check_given(command: str, ref: str, missing: str | None) -> None:
    """Check that a command that changes one version names it for good; `missing` is what else is not given.

    A base has no versions, which the registry says.
    Raises UsageError, which names all that is missing at once.
    """
    faults = (
        []
        if "@" in ref or "/" not in ref
        else [f"the version's number or digest, as in `loratree {command} {ref}@NUMBER`"]
    )
    if faults or missing:
        raise click.UsageError(f"give {', and '.join([*faults, *([missing] if missing else [])])}")


def parse_time(option: str, text: str) -> timedelta:
    """Parse the value of an option that is a time, such as 30d. Raises UsageError."""
    try:
        return parse_duration(option, text)
    except Invalid as error:
        raise click.UsageError(str(error)) from error


def _parse_weights(context: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for text in texts:
        path, _, number = text.partition("=")
        if path in weights:
            raise click.BadParameter(f"{path} is given twice", context, option)
        try:
            weights[path] = float(number)
        except ValueError as error:
            raise click.BadParameter(
                f"{text!r} is not PATH=NUMBER, such as tiny/medicine=0.5", context, option
            ) from error
    return weights


weight_option = click.option(
    "--weight",
    "weights",
    metavar="PATH=NUMBER",
    multiple=True,
    callback=_parse_weights,
    help="Multiply what the level at PATH adds; 1 by default, 0 drops it. Repeatable.",
)


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --rank and --energy; the command gets them as `limit`, or None if neither is given."""

    @click.option("--rank", type=int, metavar="N", help="Truncate each module to its best approximation of rank N.")
    @click.option(
        "--energy",
        type=float,
        metavar="SHARE",
        help="Truncate each module to the lowest rank that keeps this share of its energy ‖ΔW‖², such as 0.99.",
    )
    @wraps(command)
    def limited(*arguments: Any, rank: int | None, energy: float | None, **options: Any) -> None:
        command(*arguments, limit=_parse_limit(rank, energy), **options)

    return limited


def _parse_limit(rank: int | None, energy: float | None) -> Limit | None:
    if rank is None and energy is None:
        return None
    try:
        return Limit(rank, energy)
    except Invalid as error:
        raise click.UsageError(str(error)) from error
