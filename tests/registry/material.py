"""What the registry's tests publish: real PEFT adapters over a real base, and how to send them."""

import hashlib
import io
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratree_registry.core.digests import FileDigest
from loratree_registry.core.manifest import BaseManifest, Parameter
from loratree_registry.core.paths import Level
from loratree_registry.core.records import Published, Submission
from loratree_registry.core.registry import Registry
from loratree_registry.tensor_files.header import Header, read_header

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """An adapter's config, as PEFT wrote it, and the bytes of its weights."""

    config: dict[str, Any]
    weights: bytes

    @property
    def file(self) -> FileDigest:
        return FileDigest(WEIGHTS, len(self.weights), sha256(self.weights))

    def variant(self, number: int) -> "Adapter":
        """The same adapter with another last value: other content, as good as the first."""
        return Adapter(self.config, self.weights[:-4] + struct.pack("<f", number))

    def written(self, folder: Path) -> Path:
        """The folder that PEFT would write."""
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps(self.config), encoding="utf-8")
        (folder / WEIGHTS).write_bytes(self.weights)
        return folder


@dataclass(frozen=True)
class Material:
    """A base's manifest and files, another's manifest, adapters of falling rank, a DoRA, one with a whole lm_head."""

    base: BaseManifest
    checkpoint: dict[str, bytes]
    other_base: BaseManifest
    rank8: Adapter
    rank4: Adapter
    rank2: Adapter
    ordered: Adapter
    override: Adapter


def make(folder: Path) -> Material:
    """Trains nothing: the values are random, the files are PEFT's own."""
    from tests import tiny  # torch, transformers and PEFT

    base = tiny.llama(folder / "base")
    adapters = [
        read(tiny.adapter(base, folder / f"rank{rank}", seed=rank, rank=rank, alpha=2 * rank)) for rank in (8, 4, 2)
    ]
    ordered = read(tiny.adapter(base, folder / "dora", rank=2, use_dora=True))
    override = read(tiny.adapter(base, folder / "saved", rank=2, targets=["q_proj"], modules_to_save=["lm_head"]))
    other = tiny.llama(folder / "other", seed=9)
    checkpoint = {path.name: path.read_bytes() for path in sorted(base.iterdir())}
    return Material(manifest(base), checkpoint, manifest(other), *adapters, ordered, override)


def read(directory: Path) -> Adapter:
    """A PEFT directory."""
    config = json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))
    return Adapter(config, (directory / WEIGHTS).read_bytes())


def manifest(directory: Path) -> BaseManifest:
    """The manifest of a Llama's checkpoint in one file, from its header alone."""
    weights = (directory / "model.safetensors").read_bytes()
    header = read_header(io.BytesIO(weights), len(weights))
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return BaseManifest(
        parameters=tuple(parameter(name, header, weights) for name in sorted(header.tensors)),
        architecture="LlamaForCausalLM",
        vocabulary_size=config["vocab_size"],
    )


def parameter(name: str, header: Header, weights: bytes) -> Parameter:
    """One tensor of a checkpoint."""
    tensor = header.tensors[name]
    return Parameter(
        name=name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        kind=_kind(name),
        sha256=sha256(weights[tensor.start : tensor.end]),
    )


def publish(
    registry: Registry,
    path: str,
    adapter: Adapter,
    parent: str | None = None,
    *,
    found: str | None = None,
    level: Level | None = None,
    note: str | None = None,
    change: Callable[[Submission], Submission] = lambda submission: submission,
) -> Published:
    """Uploads an adapter and publishes it: with a `parent` the pin is explicit, without one it is assumed."""
    registry.upload(io.BytesIO(adapter.weights), sha256=adapter.file.sha256, size=adapter.file.size)
    source: Any = found or ("explicit" if parent else "assumed")
    submission = Submission(
        config=adapter.config, files=[adapter.file], parent=parent, found=source, level=level, note=note
    )
    return registry.publish(path, change(submission))


def sha256(content: bytes) -> str:
    """A digest as loratree writes it."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def break_reads(path: Path) -> None:
    """Puts a file in the place of another whose reads fail with EIO, as those of a disk with bad sectors do."""
    path.unlink()
    path.symlink_to("/proc/self/mem")  # nothing is mapped at the address 0


def _kind(name: str) -> str:
    if name.endswith("embed_tokens.weight"):
        return "Embedding"
    return "LlamaRMSNorm" if name.endswith("norm.weight") else "Linear"
