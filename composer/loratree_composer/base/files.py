"""A base's tensors, read from its checkpoint on this machine and checked against their digests."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from loratree_composer.base.converted import load_model
from loratree_composer.base.manifest import fit_layout
from loratree_composer.base.meta_model import meta_model
from loratree_composer.base.stored_tensor import digest_of, read_tensor
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import Base
from loratree_registry.errors import Invalid, NotFound
from loratree_registry.tensor_files.checkpoint import Checkpoint, open_checkpoint
from loratree_registry.workspace import base_locations


@dataclass(frozen=True)
class BaseFiles:
    """A base's checkpoint as a source of its tensors."""

    manifest: BaseManifest
    checkpoint: Checkpoint

    def read(self, name: str) -> Tensor:
        """Read one tensor to the CPU, in the dtype of the file. Raises Invalid if the files no longer hold it."""
        parameters = self.manifest.by_name()
        first = parameters[name].tied_to or name
        names = {first, *(p.name for p in self.manifest.parameters if p.tied_to == first)}
        places = self.manifest.locate(self.checkpoint.shard_of)
        stored = next((candidate for candidate, target in places.items() if target in names), None)
        if stored is None:
            raise Invalid(
                f"{self.checkpoint.directory} holds no {first}: if it is still the base, transformers fuses "
                "or computes its tensors when it loads them, and none can be read alone; keep the pristine "
                "weights in memory, or load the model in the base's own dtype"
            )
        tensor = read_tensor(self.checkpoint, stored)
        if digest_of(tensor) != parameters[first].sha256:
            raise Invalid(f"{self.checkpoint.directory} no longer holds the base: {first} differs; add the base again")
        return tensor


def load_base(base: Base, home: Path, **loading: Any) -> nn.Module:
    """Load the model of the checkpoint that `home` records for a base, with transformers; `loading` goes to the loader.

    Raises NotFound if `home` records no folder, Invalid if the folder holds no model that can be loaded.
    """
    directory = base_locations.base_directory(home, base.digest)
    if directory is None:
        raise NotFound(
            f"the checkpoint of the base {base.name} is not known on this machine: run loratree base add {base.name} "
            f"DIR, or fetch it with loratree base pull {base.name} --out DIR, or load the model and use Composer(model)"
        )
    checkpoint = open_checkpoint(directory)
    return load_model(checkpoint, meta_model(directory, checkpoint), **loading)


def open_base(base: Base, manifest: BaseManifest, home: Path) -> BaseFiles:
    """Open the base's checkpoint that `home` records. Raises Invalid if `home` records none, or no readable one."""
    directory = base_locations.base_directory(home, base.digest)
    if directory is None:
        raise Invalid(
            f"the checkpoint of the base {base.name} is not known on this machine: run loratree base add {base.name} "
            "DIR, or keep the pristine weights in memory"
        )
    return base_files(manifest, open_checkpoint(directory))


def base_files(manifest: BaseManifest, checkpoint: Checkpoint) -> BaseFiles:
    """Return the tensors of a checkpoint of the base, whatever names it has for them."""
    return BaseFiles(fit_layout(manifest, checkpoint), checkpoint)
