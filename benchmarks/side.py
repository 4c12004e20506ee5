"""One side of a comparison in a process of its own, asked and answered by lines of JSON; standard library only."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}


class Side:
    """A child process that runs `serve`."""

    def __init__(self, *command: str, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            env=os.environ | ENVIRONMENT | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, what: str, **how: Any) -> Any:
        """Has the child do one thing, and returns what it found."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([what, how]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args} ended while it was asked for {what}: see its errors above")
        return json.loads(answer)

    def close(self) -> None:
        """Lets the child end."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def serve(operations: Mapping[str, Callable[..., Any]]) -> None:
    """Answers until there is nobody to ask; what libraries print goes to the errors."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        what, how = json.loads(line)
        print(json.dumps(operations[what](**how)), file=answers, flush=True)


def each_ms(call: Callable[..., object], arguments: Sequence[Sequence[Any]]) -> list[float]:
    """The milliseconds that each call took."""
    taken = []
    for given in arguments:
        start = time.perf_counter()
        call(*given)
        taken.append(1000 * (time.perf_counter() - start))
    return taken


def per_second(call: Callable[..., object], shares: Sequence[Sequence[Sequence[Any]]]) -> float:
    """The calls a second of as many threads as there are shares, each of which makes its own calls."""
    with ThreadPoolExecutor(len(shares)) as threads:
        start = time.perf_counter()
        for done in [threads.submit(each_ms, call, share) for share in shares]:
            done.result()
        return sum(map(len, shares)) / (time.perf_counter() - start)
