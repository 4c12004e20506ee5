"""The options --rank and --energy."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from loratree_registry.errors import Invalid
from loratree_registry.limit import Limit


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds both options; the command gets `limit`, None where neither is given."""

    @click.option("--rank", type=int, metavar="N", help="Truncate each module to its best approximation of rank N.")
    @click.option(
        "--energy", type=float, metavar="SHARE", help="Truncate each to the least rank that keeps this, such as 0.99."
    )
    @wraps(command)
    def limited(*arguments: Any, rank: int | None, energy: float | None, **options: Any) -> None:
        command(*arguments, limit=_limit(rank, energy), **options)

    return limited


def _limit(rank: int | None, energy: float | None) -> Limit | None:
    if rank is None and energy is None:
        return None
    try:
        return Limit(rank, energy)
    except Invalid as error:
        raise click.UsageError(str(error)) from error
