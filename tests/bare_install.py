"""Checks an installation without extras: it imports no torch, says what is missing, and `loratree ls` is quick.

Run as `python -m tests.bare_install PATH_TO_LORATREE`; .ci/run does, in a virtual environment of its own.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 0.5  # seconds for `loratree ls` once warm, the median of RUNS
RUNS = 11


def main(loratree: Path) -> None:
    with tempfile.TemporaryDirectory() as home:
        environment = {"PATH": os.environ["PATH"], "LORATREE_HOME": home}
        seconds = [_timed([str(loratree), "ls"], environment) for _ in range(RUNS + 2)][2:]
        python = loratree.with_name("python")
        missing = _run([str(python), "-c", "import torch"], environment)
        assert missing.returncode != 0, "the bare environment holds torch, so this proves nothing"
        _run([str(python), "-c", "import loratree_registry"], environment).check_returncode()
        refused = _run([str(loratree), "compose", "x", "--mode", "merge", "--out", f"{home}/out"], environment)
        assert refused.returncode == 1, refused
        assert "loratree[composer]" in refused.stderr, refused.stderr
        refused = _run([str(loratree), "demo", "--out", f"{home}/demo"], environment)
        assert "loratree[demo]" in refused.stderr, refused.stderr
    median = statistics.median(seconds)
    print(f"loratree ls without extras: median {median:.3f} s of {RUNS} runs (limit {LIMIT} s)")
    assert median < LIMIT, seconds


def _timed(command: list[str], environment: dict[str, str]) -> float:
    start = time.perf_counter()
    _run(command, environment).check_returncode()
    return time.perf_counter() - start


def _run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
