"""A run of the real `loratree` that is watched and may be killed at any of its effects."""

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from loratree_cli.main import main
from tests.crash.effects import Fault, Trace
from tests.forked import SERVER, TURN, take_over

Sabotage = Callable[[], None]
_START_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """How a child ended: its exit status (-9 where it was killed), what it printed, and its effects."""

    status: int
    out: str
    err: str
    effects: tuple[str, ...]


def nothing() -> None:
    """Leaves `loratree` as it is."""


class Child:
    """One run of `loratree`; `folder` is an empty one for what it prints."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        fault: Fault | None = None,
        sabotage: Sabotage = nothing,
    ) -> None:
        folder.mkdir()
        self._folder = folder
        self._process: ForkServerProcess = SERVER.Process(
            target=_run, args=(list(arguments), dict(environment), str(folder), fault, sabotage), daemon=True
        )
        with TURN:
            self._process.start()

    def wait(self) -> Outcome:
        """Waits for its end."""
        if not wait([self._process.sentinel], _START_S):
            assert self._process.pid is not None
            os.kill(self._process.pid, signal.SIGUSR1)  # it says where it waits
            wait([self._process.sentinel], 5)
            self._process.kill()
            raise AssertionError(f"it did not end in {_START_S} s: {self._read('err')}{self._read('where')}")
        with TURN:
            status = self._process.exitcode
        assert status is not None
        return Outcome(status, self._read("out"), self._read("err"), tuple(self._read("effects").splitlines()))

    def first_line(self) -> str | None:
        """The first line that it prints, such as a server's URL; None where it ends before that."""
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            if (out := self._read("out")).endswith("\n"):
                return out.splitlines()[0]
            if wait([self._process.sentinel], 0.005):
                return None
        raise AssertionError(f"it printed nothing in {_START_S} s")

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        self._process.kill()
        wait([self._process.sentinel])

    def _read(self, name: str) -> str:
        file = self._folder / name
        return file.read_text() if file.exists() else ""


def _run(
    arguments: list[str], environment: dict[str, str], folder: str, fault: Fault | None, sabotage: Sabotage
) -> None:
    take_over(arguments, environment, folder)
    with Path(folder, "where").open("w", encoding="utf-8") as where:
        faulthandler.register(signal.SIGUSR1, where, chain=True)  # then it ends
        _run_watched(environment, folder, fault, sabotage)


def _run_watched(environment: dict[str, str], folder: str, fault: Fault | None, sabotage: Sabotage) -> None:
    sabotage()
    if fault is None:
        main()
        return
    trace = Trace(f"{folder}/effects", fault, home=environment["TMPDIR"], blobs=environment["LORATREE_BLOBS"])
    trace.watch()
    try:
        main()
    finally:
        trace.effect("end", "the end")
