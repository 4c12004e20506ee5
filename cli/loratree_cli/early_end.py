"""Early ends of a command: Ctrl-C, the SIGTERM of a shell or a supervisor, and a reader that has read enough."""

import os
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

INTERRUPTED: Final = 128 + signal.SIGINT
TERMINATED: Final = 128 + signal.SIGTERM
UNREAD: Final = 128 + signal.SIGPIPE
# What a short command does is one transaction, and a long command says more: see progress.working.
WHOLE: Final = "what the command was to change is changed whole or not at all"


class Interrupted(Exception):
    """Ctrl-C; the message says what was kept and how to go on."""


class Unread(Exception):
    """Who read what the command prints, such as `head`, has closed the pipe."""


def end_at_sigterm() -> None:
    """Make SIGTERM end the command as an exception does, so that nothing temporary stays; the exit status is 143."""
    signal.signal(signal.SIGTERM, _end)


def ignore_signals() -> None:
    """Let nothing more disturb the end of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def end_unread() -> NoReturn:
    """End quietly with the status of a process that SIGPIPE killed, as `git log | head -1` does.

    The signal itself stays ignored, as Python has it: it would end the process in the middle of a change, and at any
    connection that a server closes.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for handle in (1, 2):  # the end of the process writes what is left to print
        os.dup2(nowhere, handle)
    sys.exit(UNREAD)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would disturb the cleaning
    sys.exit(TERMINATED)
