"""Trips: levels that PEFT trains one after the other, each on the folder that was composed of the levels above it."""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from loratree_composer.adapters.adapter import Adapter, is_untied, programs_of
from loratree_composer.base.manifest import read_base
from loratree_composer.checkpoints.merged_checkpoint import write_merged
from loratree_composer.flatten.flatten import flattened
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.stack import Stack
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.checkpoint import open_checkpoint
from tests.composer import chains
from tests.peft_adapters import fill, randomize
from tests.peft_bases import Run, logits, quiet

Config = dict[str, Any]


class NotTrained(Exception):
    """PEFT itself refuses the config."""


@dataclass
class Trip:
    """A base in float64 on disk, and the levels trained so far.

    `expected` is what the last level's PEFT model gives, `parent` the folder that the next level is trained on.
    """

    base: Path
    folder: Path
    model: type[nn.Module]
    run: Run
    manifest: BaseManifest
    parent: Path
    chain: list[tuple[Adapter, float]] = field(default_factory=list)
    expected: Tensor | None = None
    refused: str = ""

    def load(self, directory: Path) -> nn.Module:
        """The model in a folder, as transformers loads it."""
        loader: Any = self.model
        with quiet():
            model = loader.from_pretrained(directory, dtype=torch.float64)
        if getattr(model.config, "_experts_implementation", None) is not None:
            model.set_experts_implementation("eager")  # the grouped product knows no float64
        assert isinstance(model, nn.Module)
        return model.eval()

    @property
    def untied(self) -> bool:
        """Whether the levels so far take names apart that the base ties."""
        return is_untied(self.chain, self.manifest.tied_names())

    def train(self, config: Config, *, seed: int) -> None:
        """Lets PEFT write the next level. Raises NotTrained, and Invalid if it could not be published."""
        directory = self.folder / f"level{len(self.chain)}"
        torch.manual_seed(seed)
        settings = {"r": 3, "lora_alpha": 5} | config
        with quiet(), torch.no_grad():
            try:
                tuned = peft.get_peft_model(self.load(self.parent), peft.LoraConfig(**settings))
                fill(tuned)
                tuned.save_pretrained(directory)
                expected = self.run(tuned.eval())
            except (ValueError, TypeError, AttributeError, KeyError, RuntimeError, NotImplementedError) as error:
                raise NotTrained(str(error)) from error
        chains.check(directory, self.manifest, untied=self.untied, on_base=not self.chain)
        self.chain.append((chains.read(directory, self.manifest, untied=self.untied), 1.0))
        self.expected = expected

    def compose(self) -> None:
        """Composes the levels so far to a folder, which the next level is trained on. Raises Invalid."""
        out = self.folder / f"composed{len(self.chain)}"
        out.mkdir()
        base = open_checkpoint(self.base)
        write_merged(base, self.manifest, programs_of(self.chain), out, untied=self.untied)
        self.parent = out

    @torch.no_grad()
    def written(self) -> Iterator[tuple[str, float]]:
        """Yields how far the composed folder, as transformers loads it, is from PEFT's own model."""
        assert self.expected is not None
        yield "written", chains.relative(self.run(self.load(self.parent)), self.expected)

    @torch.no_grad()
    def differences(self) -> Iterator[tuple[str, float]]:
        """Yields each form of the composition, and how far its output is from PEFT's own model."""
        assert self.expected is not None
        for name, model in self._forms():
            yield name, chains.relative(self.run(model), self.expected)

    def _forms(self) -> Iterator[tuple[str, nn.Module]]:
        model = self.load(self.base)
        merges = MergedWeights(model)
        for depth in range(len(self.chain)):
            merges.merge(programs_of(self.chain[:depth]))
            stack = Stack(model, programs_of(self.chain[depth:]))
            yield f"split after {depth}" if depth else "stacked", model
            stack.remove()
        merges.merge(programs_of(self.chain))
        yield "merged", model
        try:
            flat = flattened(self.chain, self.manifest, base_model="base")
        except Invalid as error:
            self.refused = str(error)
            return
        directory = self.folder / f"flat{len(self.chain)}"
        directory.mkdir()
        (directory / "adapter_config.json").write_text(json.dumps(flat.config))
        save_file(flat.tensors, directory / "adapter_model.safetensors")
        with quiet():
            yield (
                "flattened",
                peft.PeftModel.from_pretrained(self.load(self.base), directory, autocast_adapter_dtype=False).eval(),
            )


def start(model: nn.Module, folder: Path, *, run: Run = logits, seed: int = 0) -> Trip:
    """Saves a model with random values, in float64."""
    torch.manual_seed(seed)
    base = copy.deepcopy(model).double().eval()
    randomize(base)
    saver: Any = base
    saver.save_pretrained(folder / "base")
    directory = folder / "base"
    return Trip(directory, folder, type(base), run, read_base(directory), directory)


def travel(trip: Trip, configs: Sequence[Config], *, seed: int = 1) -> Iterator[tuple[str, float]]:
    """Trains each level, and yields how far each form is from PEFT's model, with the level's number.

    The last level is also composed to a folder.
    """
    for number, config in enumerate(configs, 1):
        trip.train(config, seed=seed + number)
        for name, difference in trip.differences():
            yield f"level {number}, {name}", difference
        trip.compose()
        for name, difference in trip.written():
            yield f"level {number}, {name}", difference
