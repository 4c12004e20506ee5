"""Checks an installation without extras: it imports no torch, says what is missing, and `loratree ls` is quick.

Importing SQLAlchemy alone takes 0.3 to 0.5 s on a busy machine, so `ls` is timed in turn with that import. The ratio
of the medians always has a limit; the quickest run has one in seconds too, unless the import alone takes nearly that.

Run as `python -m tests.bare_install PATH_TO_LORATREE`; .ci/run does, in a virtual environment of its own.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 0.5  # seconds for `loratree ls` once warm, the quickest of RUNS
RATIO = 1.5  # of the median of RUNS to the median of FLOOR
RUNS = 11
FLOOR = "import sqlalchemy.dialects.sqlite, sqlite3, click"


def main(loratree: Path) -> None:
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "LORATREE_HOME": home}
        python = loratree.with_name("python")
        commands = [[str(loratree), "ls"], [str(python), "-c", FLOOR]]
        rounds = [[_timed(command, environment) for command in commands] for _ in range(RUNS + 2)][2:]
        missing = _run([str(python), "-c", "import torch"], environment)
        assert missing.returncode != 0, "the bare environment holds torch, so this proves nothing"
        _run([str(python), "-c", "import loratree_registry"], environment).check_returncode()
        refused = _run([str(loratree), "compose", "x", "--mode", "merge", "--out", f"{home}/out"], environment)
        assert refused.returncode == 1, refused
        assert "loratree[composer]" in refused.stderr, refused.stderr
        refused = _run([str(loratree), "demo", "--out", f"{home}/demo"], environment)
        assert "loratree[demo]" in refused.stderr, refused.stderr
    seconds, floor = zip(*rounds, strict=True)
    quickest, ratio = min(seconds), statistics.median(seconds) / statistics.median(floor)
    print(f"loratree ls without extras: quickest {quickest:.3f} s of {RUNS} runs (limit {LIMIT} s)")
    print(f"median {statistics.median(seconds):.3f} s, {ratio:.2f} × importing SQLAlchemy and click (limit {RATIO})")
    assert ratio < RATIO, rounds
    assert quickest < LIMIT or min(floor) > 0.8 * LIMIT, rounds


def _timed(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    _run(command, environment).check_returncode()
    return time.perf_counter() - start


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
