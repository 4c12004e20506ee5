"""The start of the process: Ctrl-C while the command line is still being imported ends it without a traceback."""

import signal


def start() -> None:
    """Import the command line and run it."""
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not where a shell ignores Ctrl-C
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from loratree_cli.main import main

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
