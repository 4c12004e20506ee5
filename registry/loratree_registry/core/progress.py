"""How far a long task is: the one kind of callback that the library calls, and the counter that calls it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

# Called while a task runs: what is done now, how much of it is done, how much there is to do (0 if nobody knows), and
# the unit of both: BYTES, or a noun in the plural. Threads may call it. What it raises ends the task.
Progress = Callable[[str, int, int, str], object]

# Called with the number of bytes or items that were done since the last call.
Tick = Callable[[int], object]

BYTES: Final = "bytes"
INTERVAL_S: Final = 0.1  # a counter calls at most this often, so that counting costs nothing


def silent(what: str, done: int, total: int, unit: str) -> None:
    """Tell nobody."""


def uncounted(count: int) -> None:
    """Count nothing."""


class Stopped(BaseException):
    """Raised in a thread whose result nobody wants any more; it is no error, so no handler of errors catches it."""


class Counter:
    """Adds up what is done of a task and calls `progress` at most every INTERVAL_S, from any thread.

    More than `total` counts as `total`: bytes may be read twice.
    """

    def __init__(
        self, progress: Progress, what: str, total: int, unit: str = BYTES, *, then: str | None = None
    ) -> None:
        """`then` says what follows the last one, such as a check of what was sent, of unknown length."""
        self._what, self._then = what, then
        self._progress, self._total, self._unit = progress, total, unit
        self._done, self._told = 0, -1
        self._next, self._is_stopped, self._lock = 0.0, False, Lock()
        self._tell()

    def begin(self, what: str) -> None:
        """Say what is done from now on, such as the next of several files."""
        self._what = what
        self._tell()

    def add(self, count: int = 1) -> None:
        """Count what was done since the last call. Raises Stopped after `stop`."""
        if self._is_stopped:
            raise Stopped
        with self._lock:
            self._done = min(self._done + count, self._total) if self._total else self._done + count
            if time.monotonic() >= self._next or (self._done == self._total != self._told):
                self._tell()  # with the lock, so that no thread tells less after another has told more

    def stop(self) -> None:
        """Make every later `add` raise Stopped, in whatever thread."""
        self._is_stopped = True

    def _tell(self) -> None:
        self._next, self._told = time.monotonic() + INTERVAL_S, self._done
        self._progress(self._what, self._done, self._total, self._unit)
        if self._then is not None and self._done == self._total > 0:
            self._progress(self._then, 0, 0, self._unit)


@contextmanager
def stopping(counter: Counter) -> Iterator[None]:
    """Stop `counter` if the block is left by an exception, so that the threads that it waits for end soon."""
    try:
        yield
    except BaseException:
        counter.stop()
        raise
