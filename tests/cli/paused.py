"""The real `loratree` in a process of its own that pauses at one effect, so that a test can look or interrupt there."""

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loratree_cli.main import main
from tests.forked import SERVER, TURN, take_over

LIMIT_S = 60.0
COLUMNS = 100
_ERASED = re.compile(r"\x1b\[(\??\d*)([A-Za-z])")


@dataclass(frozen=True)
class Pause:
    """Where a process pauses: before the `nth` audited event that opens or removes a file whose path has `path`."""

    path: str
    event: str = "open"
    nth: int = 1


NEVER = Pause("no such path")


class Paused:
    """One run of `loratree`, in a pipe or at a pseudo-terminal of its own, where a Ctrl-C is typed."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        environment: Mapping[str, str],
        folder: Path,
        pause: Pause = NEVER,
        *,
        terminal: bool = False,
        stdout: bool = False,
    ) -> None:
        """`terminal` gives it a terminal for its stdin and stderr, and for its `stdout` too if asked."""
        folder.mkdir()
        self._folder, self._written = folder, b""
        self._master, slave = pty.openpty() if terminal else (-1, -1)
        name = os.ttyname(slave) if terminal else ""
        environment = {"COLUMNS": str(COLUMNS), "TERM": "xterm", **environment}
        self._process = SERVER.Process(
            target=_run, args=([*map(str, arguments)], environment, str(folder), pause, name, stdout), daemon=True
        )
        with TURN:
            self._process.start()
        self._slave = slave

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.kill()
        for handle in (self._master, self._slave):
            if handle >= 0:
                os.close(handle)

    def wait_for_pause(self) -> None:
        """Waits until it pauses."""
        self.wait_until(lambda: (self._folder / "paused").exists(), "paused")

    def wait_for_text(self, pattern: str) -> None:
        """Waits until it has written `pattern` to its terminal."""
        self.wait_until(lambda: re.search(pattern, self.written()) is not None, f"wrote {pattern}")

    def press_ctrl_c(self) -> None:
        """Types Ctrl-C at its terminal, or sends SIGINT if it has none."""
        if self._master >= 0:
            os.write(self._master, b"\x03")
        else:
            self.send(signal.SIGINT)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def go_on(self) -> None:
        """Lets it go on."""
        (self._folder / "go").touch()

    def end(self) -> subprocess.CompletedProcess[str]:
        """Waits for its end; at a terminal, `stderr` is all that it wrote there."""
        self.go_on()
        self.wait_until(lambda: bool(wait([self._process.sentinel], 0)), "ended")
        with TURN:
            status = self._process.exitcode
        assert status is not None
        err = self.written() if self._master >= 0 else self._read("err")
        return subprocess.CompletedProcess([], status, self._read("out"), err)

    def wait_until(self, is_true: Callable[[], bool], what: str) -> None:
        """Waits until `is_true`, and reads its terminal meanwhile."""
        end = time.monotonic() + LIMIT_S
        while not is_true():
            self.written()  # which would be full otherwise
            has_ended = bool(wait([self._process.sentinel], 0.005)) and not is_true()
            if has_ended or time.monotonic() > end:
                said = screen(self.written()) + self._read("err").splitlines()
                raise AssertionError(f"it never {what}; it {'ended' if has_ended else 'runs'} and said {said}")

    def _read(self, name: str) -> str:
        file = self._folder / name
        return file.read_text() if file.exists() else ""

    def written(self) -> str:
        """All that it has written to its terminal so far."""
        if self._master >= 0:
            os.set_blocking(self._master, False)
            try:
                while chunk := os.read(self._master, 65536):
                    self._written += chunk
            except OSError:  # nothing more for now
                pass
        return self._written.decode(errors="replace")


def screen(written: str) -> list[str]:
    """Returns the lines that stand on a terminal after `written`, without colours."""
    lines, row, column, at = [""], 0, 0, 0
    while at < len(written):
        character = written[at]
        if code := _ERASED.match(written, at):
            at = code.end()
            if code[2] == "K":
                lines[row] = ""
            elif code[2] == "A":
                row = max(0, row - int(code[1] or 1))
            continue
        at += 1
        if character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines if line.strip()]


def _run(
    arguments: list[str], environment: dict[str, str], folder: str, pause: Pause, terminal: str, stdout: bool
) -> None:
    take_over(arguments, environment, folder)
    if terminal:
        os.setsid()
        handle = os.open(terminal, os.O_RDWR)  # the first one that a session opens is its own: Ctrl-C comes from there
        for number in (0, 1, 2) if stdout else (0, 2):
            os.dup2(handle, number)
    _pause_at(pause, Path(folder))
    main()


def _pause_at(pause: Pause, folder: Path) -> None:
    left = pause.nth
    paused, go = folder / "paused", folder / "go"

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event != pause.event or pause.path not in str(arguments[0]):
            return
        left -= 1
        if left == 0:
            paused.touch()
            while not go.exists():
                time.sleep(0.005)

    sys.addaudithook(audited)
