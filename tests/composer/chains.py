"""Chains of real PEFT adapters over a tiny base, read as the composer reads them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from torch import nn

from loratree_composer.adapters.adapter import Adapter, programs_of, read_adapter
from loratree_composer.arithmetic.edits import Add, joined
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.peft_format.classify import classify
from loratree_registry.peft_format.tensors import FACTORS
from loratree_registry.tensor_files.finite import check_finite
from loratree_registry.tensor_files.header import Header, read_header
from tests import tiny

WEIGHTS = "adapter_model.safetensors"


def read(directory: Path, manifest: BaseManifest, *, untied: bool = False) -> Adapter:
    """Reads a PEFT directory as a composer reads a published one."""
    header, config = read_files(directory)
    spec = classify(config, header, manifest, untied=untied)
    return read_adapter(directory / WEIGHTS, spec, digest=str(directory), task_type=config["task_type"])


def check(directory: Path, manifest: BaseManifest, *, untied: bool, on_base: bool) -> None:
    """Checks a PEFT directory as publishing does, with the digests of its tensors. Raises Invalid."""
    header, config = read_files(directory)
    with (directory / WEIGHTS).open("rb") as stream:
        stream.seek(header.data_start)
        digests = check_finite(stream, header, undigested=FACTORS)
    spec = classify(config, header, manifest, digests=digests, untied=untied, on_base=on_base)
    assert classify(config, header, manifest, untied=untied, on_base=on_base) == spec


def read_files(directory: Path) -> tuple[Header, dict[str, Any]]:
    """The header and the config of a PEFT directory."""
    with (directory / WEIGHTS).open("rb") as stream:
        header = read_header(stream, (directory / WEIGHTS).stat().st_size)
    return header, json.loads((directory / "adapter_config.json").read_text())


def summed(chain: Sequence[tuple[Adapter, float]]) -> dict[str, LowRank]:
    """Σ wᵢ sᵢ BᵢAᵢ of a chain of plain deltas, by module, as PEFT turns them."""
    found = {}
    for name, program in programs_of(chain).items():
        (add,) = joined(program.edits)
        assert isinstance(add, Add)
        found[name.removesuffix(".weight")] = add.delta.transposed() if add.kind == "Conv1D" else add.delta
    return found


def load(directory: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model in `directory`, by transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


@torch.inference_mode()
def logits(model: nn.Module) -> torch.Tensor:
    """The model's logits for some fixed tokens, [batch, length, vocabulary]."""
    return model(tiny.tokens()).logits


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, over the largest expected magnitude."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def state_digest(model: nn.Module) -> str:
    """SHA-256 over every tensor of the model's state, name by name."""
    hasher = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        hasher.update(name.encode())
        hasher.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return hasher.hexdigest()


def merged_by_peft(base: Path, adapters: Iterable[Path], dtype: torch.dtype = torch.float64) -> nn.Module:
    """PEFT's own merge of every adapter of the chain, one after the other, in `dtype`."""
    model: Any = load(base, dtype)
    names = []
    for index, directory in enumerate(adapters):
        names.append(f"level{index}")
        if isinstance(model, peft.PeftModel):
            model.load_adapter(directory, names[-1])
        else:
            model = peft.PeftModel.from_pretrained(model, directory, names[-1], autocast_adapter_dtype=False)
    return model.to(dtype).merge_and_unload(adapter_names=names).eval()
