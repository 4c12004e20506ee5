"""The real `loratree` with a pseudo-terminal of a given width as its output."""

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Mapping
from multiprocessing.connection import wait

from tests import forked

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(home: object, *arguments: str, columns: int = 200, plain: bool = True, **settings: str) -> str:
    """Run `loratree` over a LORATREE_HOME at a terminal, and return what it wrote there, `plain` without colours."""
    written = _run(arguments, {"LORATREE_HOME": str(home), "TERM": "xterm-256color"} | settings, columns)
    return _ESCAPE.sub("", written) if plain else written


def _run(arguments: tuple[str, ...], environment: Mapping[str, str], columns: int) -> str:
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    process = forked.SERVER.Process(
        target=_begin, args=(list(arguments), dict(environment), os.ttyname(terminal)), daemon=True
    )
    written: list[bytes] = []
    reader = threading.Thread(target=_read, args=(master, written), daemon=True)
    reader.start()
    with forked.TURN:
        process.start()
    has_ended = bool(wait([process.sentinel], forked.LIMIT_S))
    if not has_ended:
        process.kill()
    with forked.TURN:
        process.join()
    os.close(terminal)
    reader.join()
    os.close(master)
    text = b"".join(written).decode().replace("\r\n", "\n")
    assert has_ended, text
    assert process.exitcode == 0, text
    return text


def _read(master: int, written: list[bytes]) -> None:
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the other end was closed
            return
        if not chunk:
            return
        written.append(chunk)


def _begin(arguments: list[str], environment: dict[str, str], terminal: str) -> None:
    forked.take_over(arguments, environment, terminal=terminal)
    forked.main()
