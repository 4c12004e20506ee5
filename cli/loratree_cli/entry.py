"""The start of the process: closed streams, and Ctrl-C while the command line is still being imported."""

import os
import signal
import sys


def start() -> None:
    """Import the command line and run it. A Ctrl-C meanwhile ends the process without a traceback."""
    _open_closed_streams()
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where a shell ignores Ctrl-C
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from loratree_cli.main import main

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()


def _open_closed_streams() -> None:
    """Let stdin, stdout and stderr lead nowhere where they are closed, as after `loratree ls >&-` or in a daemon.

    Otherwise the next file that is opened, such as the database, would take the place of one of them.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
