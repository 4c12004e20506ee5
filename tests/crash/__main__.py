"""`python -m tests.crash [--points N] [--effects] [WORD…]`: the crash matrix, of the rows whose name has each word."""

import argparse
import logging
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.crash.matrix import Matrix, Row, scenes
from tests.crash.places import Places
from tests.crash.table import HEAD, line, total

_MEMORY = Path("/dev/shm")


def main() -> int:
    """Prints the table as it comes, and whatever was broken; exits with 1 where something was."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("words", nargs="*", metavar="WORD", help="such as postgresql, server or publish")
    parser.add_argument("--points", type=int, metavar="N", help="at most N points a row, evenly spaced")
    parser.add_argument("--effects", action="store_true", help="print each row's effects instead, and break nothing")
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's server, a line a request
    chosen = [scene for scene in scenes() if all(word in scene.name for word in given.words)]
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        places = Places(Path(folder))
        matrix = Matrix(places)
        began = time.monotonic()
        try:
            if given.effects:
                for scene in chosen:
                    print(f"\n{scene.name}", *matrix.expected(scene).effects, sep="\n")
                return 0
            rows: list[Row] = []
            print(HEAD)
            with ThreadPoolExecutor(2) as pool:
                for row in pool.map(lambda scene: matrix.play(scene, limit=given.points), chosen):
                    rows.append(row)
                    print(line(row), flush=True)
        finally:
            matrix.close()
            places.close()
    print(total(rows, seconds=time.monotonic() - began))
    return 1 if any(row.broken for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
