"""One chain in every form: files, flattened and loaded by PEFT, stacked, merged, and split."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import peft
from torch import nn

from loratree_composer import Composer, compose
from loratree_registry.core.registry import Registry
from tests.peft_bases import quiet

T = TypeVar("T")


def every_form(
    registry: Registry,
    ref: str,
    *,
    base: Path,
    split: str,
    folder: Path,
    home: Path,
    load: Callable[[Path], nn.Module],
    run: Callable[[nn.Module], T],
    is_flat: bool = True,
) -> dict[str, T]:
    """What `run` gives for each form of `ref`; the files are in `folder`/merged, and the split is after `split`."""
    compose(registry, ref, "merge", folder / "merged", home=home)
    forms = {"files": run(load(folder / "merged"))}
    composer = Composer(load(base), registry, home=home)
    composer.use(ref)
    forms["stacked"] = run(composer.model)
    composer.merge(ref)
    forms["merged"] = run(composer.model)
    composer.use(ref, merged=split)
    forms["split"] = run(composer.model)
    if is_flat:
        compose(registry, ref, "flatten", folder / "flat", home=home)
        with quiet():
            flat = peft.PeftModel.from_pretrained(load(base), folder / "flat")  # type: ignore[arg-type]
        forms["flattened"] = run(flat.eval())
    return forms
