"""Whether a checkpoint holds a base's weights, compared tensor by tensor without loading any."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import ADAPTER_CONFIG
from loratree_registry.errors import Invalid, NotFound
from loratree_registry.tensor_files.checkpoint import TensorType, open_checkpoint


class TensorSource(Protocol):
    """What a checkpoint holds: each tensor's dtype and shape, and the digest of one."""

    def types(self) -> Mapping[str, TensorType]:
        """Every tensor's dtype code and shape."""
        ...

    def sha256(self, name: str) -> str:
        """The digest over one tensor's bytes."""
        ...


def holds_base(folder: Path, manifest: BaseManifest) -> bool:
    """Tells whether the checkpoint in `folder` holds exactly the base's tensors: names, dtypes, shapes and bytes.

    A tied tensor may be there under any of its names. Shapes are compared first, so that other models are told apart
    without reading their weights. A folder that is no readable checkpoint is another model, and so is one with an
    adapter beside its weights, which transformers would load with them.
    """
    if os.path.lexists(folder / ADAPTER_CONFIG):
        return False
    try:
        checkpoint = open_checkpoint(folder)
        return not misfits(checkpoint, manifest) and not any(differences(checkpoint, manifest))
    except (Invalid, NotFound):
        return False


def has_names(folder: Path, manifest: BaseManifest) -> bool:
    """Tells whether the checkpoint in `folder` holds all of the base's tensors, called as its model does.

    Transformers renames, fuses or computes those of some architectures as it loads them; such a one cannot be compared
    here.
    """
    expected = manifest.by_name()
    untied = {name for name, parameter in expected.items() if parameter.tied_to is None}
    try:
        names = open_checkpoint(folder).types().keys()
        return names <= expected.keys() and {expected[name].tied_to or name for name in names} == untied
    except (Invalid, NotFound):
        return False


def misfits(checkpoint: TensorSource, manifest: BaseManifest) -> list[str]:
    """Every tensor that is missing from the base, unexpected, or of another dtype or shape, a clause each."""
    expected, found = manifest.by_name(), checkpoint.types()
    stored = {expected[name].tied_to or name for name in found if name in expected}
    problems = [f"{name} is unexpected" for name in sorted(found.keys() - expected.keys())]
    problems += [f"{p.name} is missing" for p in manifest.parameters if p.tied_to is None and p.name not in stored]
    for name in sorted(found.keys() & expected.keys()):
        kind = TensorType(expected[name].dtype, expected[name].shape)
        if found[name] != kind:
            problems.append(f"{name} is {found[name]}, expected {kind}")
    return problems


def differences(checkpoint: TensorSource, manifest: BaseManifest) -> Iterator[str]:
    """Every tensor whose bytes are not the base's, one after the other as they are read, where none misfits."""
    expected = manifest.by_name()
    for name in sorted(checkpoint.types()):
        if checkpoint.sha256(name) != expected[expected[name].tied_to or name].sha256:
            yield name
