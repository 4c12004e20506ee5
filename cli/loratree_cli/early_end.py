"""Early ends of a command: Ctrl-C, and the SIGTERM of a shell or a supervisor."""

import signal
import sys
from types import FrameType
from typing import Final, NoReturn

INTERRUPTED: Final = 128 + signal.SIGINT
TERMINATED: Final = 128 + signal.SIGTERM
# What a short command does is one transaction, and a long command says more: see progress.working.
WHOLE: Final = "what the command was to change is changed whole or not at all"


class Interrupted(Exception):
    """Ctrl-C; the message says what was kept and how to go on."""


def end_at_sigterm() -> None:
    """Make SIGTERM end the command as an exception does, so that nothing temporary stays; the exit status is 143."""
    signal.signal(signal.SIGTERM, _end)


def ignore_signals() -> None:
    """Let nothing more disturb the end of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would disturb the cleaning
    sys.exit(TERMINATED)
