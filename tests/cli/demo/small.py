"""A recipe that trains in a few seconds and still climbs every rung; `python -m` this runs the demo with it."""

import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from loratree_cli.demo import shell
from loratree_cli.demo.recipe import RUNGS, Recipe
from loratree_cli.demo.run import run_demo
from tests import forked

RECIPE = Recipe(
    hidden=32,
    intermediate=48,
    layers=1,
    heads=2,
    key_value_heads=1,
    batch=4,
    base_steps=40,
    adapter_steps=20,
    base_rate=1e-2,
    adapter_rate=2e-2,
    held_out=6,
    threads=1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongText(Recipe):
    """The same training, judged in every column on the base's text, where no level can help."""

    def held_out_text(self) -> list[list[str]]:
        """The base's documents, once for each level."""
        base, *_ = super(WrongText, self).held_out_text()
        return [base for _ in RUNGS]


def run_forked(
    command: list[str], *, env: dict[str, str], stdout: int | None, text: bool, check: bool
) -> subprocess.CompletedProcess[str]:
    """Run the demo's command as subprocess.run does, in a process that has imported torch already."""
    done = forked.run(command[command.index("loratree_cli") + 1 :], env)
    if stdout is None:
        sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done


if __name__ == "__main__":
    recipe = WrongText(**asdict(RECIPE)) if "--wrong-text" in sys.argv else RECIPE
    with patch.object(shell, "subprocess", SimpleNamespace(run=run_forked, PIPE=subprocess.PIPE)):
        sys.exit(run_demo(Path(sys.argv[1]), recipe=recipe))
