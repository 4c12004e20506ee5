"""The bar of a long command, on stderr at a terminal; and what Ctrl-C says."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Timer
from typing import TYPE_CHECKING, Final

from loratree_cli.early_end import Interrupted
from loratree_cli.output import bytes_text, say
from loratree_cli.speech import SPEECH
from loratree_registry.core.progress import BYTES, Progress
from loratree_registry.core.text import one_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

DELAY_S: Final = 0.5  # a bar that flashes tells nobody anything
_WIDE: Final = 80  # columns of a terminal that has room for the bar beside its numbers


@contextmanager
def working(sentence: str, *, kept: str | Callable[[], str]) -> Iterator[Progress]:
    """Show what a long command does, and yield the callback that the library tells about it.

    At a terminal, a bar is shown after half a second and is gone at the end; with --verbose, each step is a line with
    its size and its time. Ctrl-C becomes Interrupted with `kept`, which says what was kept and how to go on.
    """
    steps = _Steps()
    bar = _Bar(sentence) if _can_draw() and not SPEECH.quiet else None

    def tell(what: str, done: int, total: int, unit: str) -> None:
        steps.tell(what, done, total, unit)
        if bar is not None:
            bar.tell(what, done, total, unit)

    try:
        try:
            if bar is not None:
                bar.begin()
            yield tell
        finally:
            if bar is not None:
                bar.end()
        steps.end()
    except KeyboardInterrupt as error:
        raise Interrupted(kept if isinstance(kept, str) else kept()) from error


def _can_draw() -> bool:
    """Return whether stderr is a terminal that can take a drawn line away again."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def at_out(out: Path, rest: str) -> Callable[[], str]:
    """Return what Ctrl-C says of a command that writes `out` whole or not at all; `rest` says how to go on."""
    was_there = is_there(out)

    def kept() -> str:
        if was_there:
            return f"{out} is as it was; {rest}"
        return f"{out} is whole" if is_there(out) else f"nothing was written at {out}; {rest}"

    return kept


def is_there(out: Path) -> bool:
    """Return whether `out` is a file, or a folder that is not empty or cannot be read."""
    try:
        return any(out.iterdir()) if out.is_dir() else os.path.lexists(out)
    except OSError:
        return True


class _Steps:
    """The steps of a command for --verbose: a line for each, when the next one begins."""

    def __init__(self) -> None:
        self._what, self._from, self._done, self._unit, self._total = "", 0, 0, BYTES, 0
        self._began, self._lock = time.monotonic(), Lock()

    def tell(self, what: str, done: int, total: int, unit: str) -> None:
        """Note how far the task is, from any thread."""
        if not SPEECH.verbose:
            return
        with self._lock:
            goes_on = (total, unit) == (self._total, self._unit) and done >= self._done  # the next of several files
            if goes_on:
                self._done = done
            if what != self._what:
                self._say_ended()
                self._what, self._from, self._began = what, done if goes_on else 0, time.monotonic()
            self._done, self._total, self._unit = done, total, unit

    def end(self) -> None:
        """Print the last step."""
        if SPEECH.verbose:
            self._say_ended()

    def _say_ended(self) -> None:
        seconds, done = time.monotonic() - self._began, self._done - self._from
        if self._what:
            amount = f"{_amount(done, self._unit)} in " if done else ""
            say(f"{self._what}: {amount}{seconds:.1f} s")


class _Bar:
    """A bar of rich, which a thread shows once the command has run for DELAY_S."""

    def __init__(self, sentence: str) -> None:
        self._state = (sentence, 0, 0, BYTES)
        self._lock, self._has_ended = Lock(), False
        self._shown: RichProgress | None = None
        self._timer = Timer(DELAY_S, self._show)
        self._timer.daemon = True

    def begin(self) -> None:
        """Begin to wait."""
        self._timer.start()

    def tell(self, what: str, done: int, total: int, unit: str) -> None:
        """Note how far the task is, from any thread."""
        with self._lock:
            before, self._state = self._state, (what, done, total, unit)
            if self._shown is None:
                return
            if (total, unit) != before[2:] or done < before[1]:  # another step, with a rate of its own
                self._begin_step(self._shown)
            else:
                self._shown.update(self._shown.tasks[0].id, description=one_line(what), completed=done)

    def end(self) -> None:
        """Take the bar away, if it was shown."""
        with self._lock:
            self._has_ended = True
        self._timer.cancel()
        if self._timer.is_alive():
            self._timer.join()
        if self._shown is not None:
            SPEECH.above = None
            self._shown.stop()

    def _show(self) -> None:
        shown = _build()
        with self._lock:
            if self._has_ended:
                return
            self._begin_step(shown)
            self._shown = shown
            with SPEECH.lock:
                shown.start()
                SPEECH.above = lambda line: shown.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def _begin_step(self, shown: "RichProgress") -> None:
        """Show a new task in place of the one before, if there is one."""
        what, done, total, unit = self._state
        for task in shown.task_ids:
            shown.remove_task(task)
        shown.add_task(one_line(what), completed=done, total=total or None, unit=unit)


def _build() -> "RichProgress":
    """Return a bar of rich: what is done, the bar, how much of all, the rate, the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class Numbers(ProgressColumn):
        """How much is done of all, the rate and the time left."""

        def render(self, task: Task) -> Text:
            return Text(_numbers(task.completed, task.total, task.fields["unit"], task.speed, task.time_remaining))

    console = Console(stderr=True)
    what = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1))
    bar = [BarColumn(bar_width=20)] if console.width >= _WIDE else []
    columns = (SpinnerColumn(), what, *bar, Numbers(table_column=Column(no_wrap=True, justify="right")))
    return RichProgress(*columns, console=console, transient=True, expand=True, redirect_stdout=False)


def _numbers(done: float, total: float | None, unit: str, speed: float | None, left: float | None) -> str:
    """Format a task's numbers for people: `12.3 MB of 35.2 MB  88.0 MB/s  0:01 left`."""
    if not total:
        return _amount(done, unit) if done else ""
    parts = [
        f"{bytes_text(int(done))} of {bytes_text(int(total))}"
        if unit == BYTES
        else f"{done:,.0f} of {total:,.0f} {unit}"
    ]
    if speed:
        parts.append(f"{bytes_text(int(speed))}/s" if unit == BYTES else f"{speed:.1f}/s")
    if left is not None and done < total:
        parts.append(f"{left // 60:.0f}:{left % 60:02.0f} left")
    return "  ".join(parts)


def _amount(count: float, unit: str) -> str:
    return bytes_text(int(count)) if unit == BYTES else f"{count:,.0f} {unit}"
