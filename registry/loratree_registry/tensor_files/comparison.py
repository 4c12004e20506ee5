"""A comparison of a checkpoint with a base, one tensor at a time, without loading the model."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.progress import Progress, silent
from loratree_registry.core.records import ADAPTER_CONFIG
from loratree_registry.errors import Invalid, NotFound
from loratree_registry.tensor_files.checkpoint import TensorType, open_checkpoint


class TensorSource(Protocol):
    """The tensors of a checkpoint: the dtype and shape of each, and the digest of one."""

    def types(self) -> Mapping[str, TensorType]:
        """Return every tensor's dtype code and shape, by name."""
        ...

    def sha256(self, name: str) -> str:
        """Return the digest over one tensor's bytes."""
        ...


def holds_base(
    folder: Path, manifest: BaseManifest, progress: Progress = silent, *, what: str = "comparing the base"
) -> bool:
    """Return whether the checkpoint in `folder` holds exactly the base's tensors: names, dtypes, shapes and bytes.

    A tensor may have any of its names, and the leftovers that the base is known with may be there. Shapes are compared
    first, so that another model is recognised before its weights are read. The answer is false for an unreadable
    checkpoint, and for one with an adapter beside its weights, because transformers would load the adapter too.
    """
    if os.path.lexists(folder / ADAPTER_CONFIG):
        return False
    try:
        checkpoint = open_checkpoint(folder)
        if misfits(checkpoint, manifest):
            return False
        return not any(differences(checkpoint.telling(progress, what), manifest))
    except (Invalid, NotFound):
        return False


def has_names(folder: Path, manifest: BaseManifest) -> bool:
    """Return whether the checkpoint in `folder` holds all of the base's tensors, each under a known name.

    Transformers fuses or computes the tensors of some architectures as it loads them. `holds_base` cannot compare such
    a checkpoint.
    """
    expected = manifest.by_name()
    untied = {name for name, parameter in expected.items() if parameter.tied_to is None}
    try:
        names = set(manifest.locate(open_checkpoint(folder).types()).values())
        return names <= expected.keys() and {expected[name].tied_to or name for name in names} == untied
    except (Invalid, NotFound):
        return False


def misfits(checkpoint: TensorSource, manifest: BaseManifest) -> list[str]:
    """Return a clause for each tensor that is missing, unexpected, or of another dtype or shape than the base's."""
    expected, actual = manifest.by_name(), checkpoint.types()
    names = manifest.locate(actual)
    known = {stored: name for stored, name in names.items() if name in expected}
    firsts = {expected[name].tied_to or name for name in known.values()}
    problems = [f"{stored} is unexpected" for stored in sorted(names.keys() - known.keys())]
    problems += [f"{p.name} is missing" for p in manifest.parameters if p.tied_to is None and p.name not in firsts]
    problems += [f"{name} is stored twice" for name, count in sorted(Counter(known.values()).items()) if count > 1]
    for stored, name in sorted(known.items()):
        kind = TensorType(expected[name].dtype, expected[name].shape)
        if actual[stored] != kind:
            problems.append(f"{stored} is {actual[stored]}, expected {kind}")
    return problems


def differences(checkpoint: TensorSource, manifest: BaseManifest) -> Iterator[str]:
    """Yield each tensor that differs in its bytes from the base's, as they are read. `misfits` must be empty."""
    expected = manifest.by_name()
    for stored, name in sorted(manifest.locate(checkpoint.types()).items()):
        if checkpoint.sha256(stored) != expected[expected[name].tied_to or name].sha256:
            yield stored
