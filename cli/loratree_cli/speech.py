"""What a command says on stderr beside its result: --quiet, --verbose, and the line above a bar."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Final

import click


@dataclass
class Speech:
    """The choices of this process. `above` prints a line above the bar while one is shown.

    Whoever prints a line or shows the bar first holds `lock`: a bar that is drawn meanwhile would wipe the line.
    """

    quiet: bool = False
    verbose: bool = False
    above: Callable[[str], None] | None = None
    lock: AbstractContextManager[object] = field(default_factory=RLock)


SPEECH: Final = Speech()


def _set_quiet(_context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        SPEECH.quiet = True
        warnings.simplefilter("ignore")


def _set_verbose(_context: click.Context, _option: click.Parameter, value: bool) -> None:
    SPEECH.verbose = SPEECH.verbose or value


def speech_options(command: Any) -> Any:
    """Add --quiet and --verbose to a command."""
    quiet = click.option(
        "--quiet",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_quiet,
        help="Print nothing on stderr but errors.",
    )
    verbose = click.option(
        "--verbose",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_verbose,
        help="Print each step with its size and time, and every problem of a failure.",
    )
    return quiet(verbose(command))


def with_speech(command: click.Command) -> click.Command:
    """Add --quiet and --verbose to `command`, and to the commands of a group, if they have none yet."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            with_speech(inner)
    elif not any(option.name == "quiet" for option in command.params):
        speech_options(command)
    return command
