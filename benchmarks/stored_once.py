"""What storing alike configs and summaries once could save at most: a tree with them, and one without.

The second database is a copy of the first in which every config and every summary is as short as a reference to another
table. Reading that table would cost something, which is left out. Both are asked in turn, on SQLite.
"""

import argparse
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks import trees
from benchmarks.side import Side

TREE = "balanced"
# What resolve reads of a summary.
SHORT = '{"ranks": [8], "scales": [2.0], "modules": 1, "parameters": 1, "dtypes": [], "rules": {}}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leaves", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--calls", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        homes = {kind: Path(name, kind) for kind in ("with", "without")}
        _load(homes["with"], options.leaves)
        _vacuum(homes["with"] / "loratree.db")
        shutil.copytree(homes["with"], homes["without"])
        _shorten(homes["without"] / "loratree.db")
        sides, pick = {kind: _open(home) for kind, home in homes.items()}, random.Random(5)
        resolves: dict[str, list[float]] = {kind: [] for kind in homes}
        publishes: dict[str, list[float]] = {kind: [] for kind in homes}
        above = trees.leaf(TREE, options.leaves, 0).rpartition("/")[0]
        for turn in range(options.repeats):
            refs = [[trees.leaf(TREE, options.leaves, pick.randrange(options.leaves))] for _ in range(options.calls)]
            for kind, side in sides.items():
                resolves[kind] += side.ask("calls", method="resolve", arguments=refs)
                publishes[kind].append(side.ask("publish", above=above, writers=1, each=100, turn=turn, nodes=1))
        sizes = {kind: side.ask("size") / options.leaves for kind, side in sides.items()}
        for side in sides.values():
            side.close()
    print(f"{options.leaves:,} users; database, resolve, publish:")
    for kind in homes:
        resolve, publish = statistics.median(resolves[kind]), statistics.median(publishes[kind])
        print(f"{kind:>8} their text: {sizes[kind]:.0f} B a user, {resolve:.2f} ms, {publish:.0f}/s")


def _open(home: Path) -> Side:
    environment = {"LORATREE_HOME": str(home), "LORATREE_DATABASE": "", "LORATREE_BLOBS": "", "LORATREE_URL": ""}
    return Side(sys.executable, "-m", "benchmarks.registry_side", environment=environment)


def _load(home: Path, leaves: int) -> None:
    side = _open(home)
    side.ask("load", tree=TREE, leaves=leaves)
    side.ask("settle")
    side.close()


def _shorten(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE versions SET config = '1', summary = ?", [SHORT])
        connection.commit()
    _vacuum(file)


def _vacuum(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("VACUUM")


if __name__ == "__main__":
    main()
