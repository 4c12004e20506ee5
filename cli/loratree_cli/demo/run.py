"""The run of `loratree demo`: from nothing to a composed model, and what each level adds."""

import os
import shlex
import shutil
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Final

import click

from loratree_cli.demo.cache import Cache
from loratree_cli.demo.grow import HOME, Growth, code
from loratree_cli.demo.recipe import LEAF, RUNGS, Recipe

INTERRUPTED: Final = 130  # the exit status that a shell reports for a program stopped by Ctrl-C
PICTURE: Final = "ladder.png"


def run_demo(out: Path, *, fresh: bool = False, recipe: Recipe | None = None) -> int:
    """Run the demo in the folder `out`; return the exit status, 0 if every level helps and all forms agree.

    Whole parts from an earlier run are used again, unless `fresh`. Raises LoratreeError if a part cannot be made.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads; spinning threads starve a busy machine
    start, cache = time.monotonic(), Cache(out)
    try:
        with cache.alone(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # PEFT reads it
            if fresh:
                cache.clear()
                cache.drop(HOME)
            growth = Growth(cache, recipe or Recipe())
            holds = _grow_and_measure(growth)
    except KeyboardInterrupt:
        click.echo("\nstopped: the same command goes on from here", err=True)
        return INTERRUPTED
    click.echo(f"\n{'Done' if holds else 'FAILED, for the reasons above,'} in {time.monotonic() - start:.0f} s.")
    _say_what_next(growth.home)
    return 0 if holds else 1


def _grow_and_measure(growth: Growth) -> bool:
    click.echo(f"$ export LORATREE_HOME={shlex.quote(str(growth.home))}")
    growth.grow()
    growth.shell.run("tree", RUNGS[0].path)
    growth.shell.run("resolve", growth.refs[-1])
    helps, agrees = _show_ladder(growth), _show_forms(growth)
    _show_bytes(growth)
    return helps and agrees


def _show_ladder(growth: Growth) -> bool:
    from loratree_cli.demo import measure, report

    ladder = measure.measure_ladder(growth)
    verdicts = ladder.verdicts()
    paired = f"what each level gains on its own text, paired over {growth.recipe.held_out} documents:"
    sentences = [paired, *(verdict.sentence() for verdict in verdicts), ladder.cost()]
    report.show("Held-out loss in nats a byte ± its standard error", report.ladder_table(ladder), *sentences)
    inputs = [growth.cache.digest(measure.LADDER), code(report.__name__)]
    growth.cache.make(PICTURE, inputs, partial(report.save_picture, ladder))
    click.echo(f"drawn in {growth.path(PICTURE)}")
    return all(verdict.helps for verdict in verdicts)


def _show_forms(growth: Growth) -> bool:
    from loratree_cli.demo import measure, report

    agreement = measure.measure_forms(growth)
    title = f"Largest difference between logits of {growth.refs[-1]}, relative to the largest logit"
    report.show(title, report.forms_table(agreement), agreement.sentence())
    return agreement.holds


def _show_bytes(growth: Growth) -> None:
    from loratree_cli.demo import measure, report

    sizes = measure.measure_sizes(growth)
    report.show("Weights that each level stores", report.bytes_table(sizes), report.bytes_sentence(sizes))


def _say_what_next(home: Path) -> None:
    program = shlex.quote(_find_program())
    click.echo(
        f"\nTry next:\n  export LORATREE_HOME={shlex.quote(str(home))}\n  {program} show {LEAF.path}\n"
        f"  {program} lineage {LEAF.path}\n"
        f"  {program} compose {RUNGS[2].path} --mode flatten --out ./{RUNGS[2].folder}-adapter"
    )


def _find_program() -> str:
    """Return `loratree` if the shell finds it, else the path where it was installed."""
    beside = Path(sys.executable).with_name("loratree")
    return "loratree" if shutil.which("loratree") or not beside.exists() else str(beside)
