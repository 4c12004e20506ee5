"""A recipe that trains in a few seconds and still climbs every rung; `python -m` this runs the demo with it."""

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from loratree_cli.demo.recipe import RUNGS, Recipe
from loratree_cli.demo.run import run_demo

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


if __name__ == "__main__":
    recipe = WrongText(**asdict(RECIPE)) if "--wrong-text" in sys.argv else RECIPE
    sys.exit(run_demo(Path(sys.argv[1]), recipe=recipe))
