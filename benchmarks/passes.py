"""What a merge and a load cost at least, as they are defined: `python -m benchmarks.passes`.

A merge writes each block of a weight three times: the pristine values, the ancestors' product, the leaf's (decision 7).
The floor of `benchmarks.compose` is one product of all levels. `merge` has both, in seconds, and their ratio. `load`
has reading the bytes of four adapters, reading and checking them, and making them ready for a merge (scaled, side by
side, in float32). The model and the adapters are those of `benchmarks.compose`; medians of runs in turn.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import compose
from benchmarks.rows import interleaved

BLOCK = 1024  # rows, as the composer sums them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compose._write_models(Path(folder))
        _measure(Path(folder), options.repeats)


def _measure(folder: Path, repeats: int) -> None:
    import torch

    from loratree_composer.adapters.adapter import programs_of
    from loratree_composer.arithmetic.program import ready
    from loratree_composer.base.manifest import read_base

    manifest, model = read_base(folder / "base"), compose._model(folder / "base", torch.float32)
    chain = compose._ours(folder, "one", manifest)
    programs = ready(programs_of(chain))
    weights = {name: model.get_parameter(name).detach() for name in programs}
    pristine = {name: weight.clone() for name, weight in weights.items()}
    one, several = compose._ready(programs), _levels(programs)

    def one_product() -> None:
        for name, weight in weights.items():
            torch.addmm(pristine[name], one[name].b, one[name].a, out=weight)

    def three_passes() -> None:
        for name, weight in weights.items():
            for start in range(0, len(weight), BLOCK):
                rows = slice(start, start + BLOCK)
                block = weight[rows].copy_(pristine[name][rows])
                for delta in several[name]:
                    block.addmm_(delta.b[rows], delta.a)

    with torch.no_grad():
        single, triple = interleaved([one_product, three_passes], repeats=repeats)
    print(f"merge   one product {single:.3f} s, three passes {triple:.3f} s: {triple / single:.2f}")

    def read_bytes() -> None:
        for rank in compose.RANKS:
            (folder / "one" / f"r{rank}" / "adapter_model.safetensors").read_bytes()

    runs = [read_bytes, lambda: compose._ours(folder, "one", manifest), lambda: ready(programs_of(chain))]
    stored, read, made = interleaved(runs, repeats=repeats)
    print(f"load    bytes {stored:.3f} s, read and checked {read:.3f} s, made ready {made:.3f} s")


def _levels(programs: Any) -> dict[str, list[Any]]:
    """The ancestors' product and the leaf's, of each weight."""
    edits = {name: (*program.ancestor_edits, *program.leaf_edits) for name, program in programs.items()}
    return {name: [edit.delta for edit in of] for name, of in edits.items()}


if __name__ == "__main__":
    main()
