"""What a command of the real command line takes: seconds, and the most memory that its process ever had resident."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Runs the command line as `python -m loratree_cli` does. Not rusage: ru_maxrss counts what the parent had at the fork.
CHILD = """
import atexit, pathlib, runpy, sys
report = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: report.write_text(pathlib.Path("/proc/self/status").read_text()))
runpy.run_module("loratree_cli", run_name="__main__")
"""


def run_command(home: Path, arguments: Sequence[str | Path], *, timeout: float = 120) -> tuple[float, int]:
    """Runs the command line over `home`, and returns its seconds and its peak memory in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "status"
        command = [sys.executable, "-c", CHILD, str(report), *map(str, arguments)]
        environment = os.environ | {"LORATREE_HOME": str(home)}
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
        seconds = time.perf_counter() - start
        assert done.returncode == 0, done.stderr
        found = re.search(r"VmHWM:\s+(\d+) kB", report.read_text())
    assert found is not None
    return seconds, int(found[1]) * 1024
