"""A sample of the registry's benchmark, ours alone: every row is measured and printed."""

import json
import math
import subprocess
import sys
from pathlib import Path

ROWS = [
    "bytes-per-leaf",
    "resolve-p99-inprocess",
    "resolve-p99-http",
    "resolve-throughput-http",
    "http-overhead",
    "resolve-growth",
    "children-page",
    "descendants-count",
    "descendants-page",
    "lineage",
    "publish-metadata",
]


def test_the_benchmark_measures_each_row_on_trees_of_a_thousand_users(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.registry", "--leaves", "1000", "--without-mlflow", "--only", *ROWS]
    file = tmp_path / "rows.json"
    done = subprocess.run(
        [*command, "--repeats", "1", "--calls", "20", "--json", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())
    assert list(dict.fromkeys(row["name"] for row in rows)) == ["load", *ROWS]
    assert all(math.isfinite(row["ours"]) for row in rows)
    assert all(row["ours"] > 0 for row in rows if row["name"] != "resolve-growth")
    assert all(row["name"] in done.stdout for row in rows)
