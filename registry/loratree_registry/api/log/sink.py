"""The way of a line to stderr: through a queue, so that no request waits for whoever reads the log."""

import atexit
import os
import threading
import time
from collections import deque
from functools import cache
from typing import Final

_STDERR: Final = 2
_PAUSE_S: Final = 0.02  # lines of this time are written together: a write for each would cost an eighth of an answer
_MOST: Final = 50_000  # lines that wait; about 10 MB
_WHOLE: Final = 4096  # bytes that a pipe takes in one piece, so that the lines of several workers do not mix


class Sink:
    """Lines for a file descriptor, written by a thread of their own.

    If whoever reads them is slower than they come, the newest are left out, and a line says how many.
    """

    def __init__(self, descriptor: int = _STDERR, *, most: int = _MOST) -> None:
        self._descriptor, self._most = descriptor, most
        self._lines: deque[str] = deque()
        self._left_out = 0
        self._wakes, self._writing = threading.Event(), threading.Lock()
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()

    def put(self, line: str) -> None:
        """Write a line soon. Never waits."""
        if len(self._lines) >= self._most:
            self._left_out += 1
            return
        self._lines.append(line)
        if not self._wakes.is_set():
            self._wakes.set()

    def flush(self) -> None:
        """Write all lines now."""
        with self._writing:
            content = "".join(f"{line}\n" for line in self._take()).encode("utf-8", "backslashreplace")
            start = 0
            while start < len(content):
                end = content.rfind(b"\n", start, start + _WHOLE) + 1 or content.find(b"\n", start) + 1
                self._write(content[start:end])
                start = end

    def _take(self) -> list[str]:
        taken = [self._lines.popleft() for _ in range(len(self._lines))]
        if self._left_out:
            count, self._left_out = self._left_out, 0
            taken.append(f"{count} lines of the log are left out: its reader is slower than they come")
        return taken

    def _write(self, content: bytes) -> None:
        rest = memoryview(content)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                time.sleep(_PAUSE_S)
            except OSError:  # a closed pipe, a full disk: the server goes on without its log
                return

    def _write_for_ever(self) -> None:
        while True:
            self._wakes.wait()
            time.sleep(_PAUSE_S)
            self._wakes.clear()
            self.flush()


@cache
def to_stderr() -> Sink:
    """Return the one sink of this process to stderr; what is in it is written when the process ends."""
    sink = Sink()
    atexit.register(sink.flush)
    return sink
