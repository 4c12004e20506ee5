"""What the real command does with a checkpoint that is larger than the memory it may take."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file

from loratree_registry.core.records import ADAPTER_WEIGHTS
from loratree_registry.peft_format.names import PREFIX
from loratree_registry.tensor_files.checkpoint import open_checkpoint
from tests import tiny
from tests.cli.conftest import Shell
from tests.peak_memory import run_command
from tests.wide import write_wide

MIB = 1024 * 1024
HEAD = "lm_head.weight"
LEAF = "wide/medicine/cardiology"


def wide_llama(directory: Path, layers: int) -> Path:
    """Writes a Llama in bfloat16, a shard a layer."""
    config = tiny.llama_config(
        hidden_size=1024,
        intermediate_size=6144,
        num_hidden_layers=layers,
        vocab_size=8000,
        dtype="bfloat16",
        tie_word_embeddings=True,
    )

    def file_of(name: str) -> str:
        layer = re.search(r"layers\.(\d+)\.", name)
        return f"model-{layer[1] if layer else name}.safetensors"

    return write_wide(directory, config, file_of)


def adapter(base: Path, directory: Path, rank: int) -> Path:
    """Writes an adapter on every layer's MLP, and on the head alone of what is tied."""
    peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=["gate_proj", "up_proj", "down_proj", "lm_head"]
    ).save_pretrained(str(directory))
    tensors = {}
    types = open_checkpoint(base).types()
    for name, kind in {**types, HEAD: types["model.embed_tokens.weight"]}.items():
        if ".mlp." in name or name == HEAD:
            key, (out, inp) = f"{PREFIX}{name.removesuffix('.weight')}", kind.shape
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, inp) * 0.01
            tensors[f"{key}.lora_B.weight"] = torch.randn(out, rank) * 0.01
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shell]:
    """A base of 7 shards of 42 MiB and a small one, embeddings tied, and a registry with two levels over it."""
    folder = tmp_path_factory.mktemp("wide")
    base, shell = wide_llama(folder / "base", layers=7), Shell(folder / "home")
    shell("base", "add", "wide", base)
    above = "base"
    for path, rank in (("wide/medicine", 64), (LEAF, 32)):
        shell("publish", adapter(base, folder / path.replace("/", "-"), rank), path, "--parent", above)
        above = path
    return base, shell


def test_merging_takes_less_memory_than_the_largest_shard_and_512_mib(
    wide: tuple[Path, Shell], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    base, shell = wide
    sizes = [shard.header.size for shard in open_checkpoint(base).shards]
    _, found = run_command(shell.home, ["compose", LEAF, "--mode", "merge", "--out", tmp_path / "out"])
    bound = max(sizes) + 512 * MIB
    record_property(
        "measured",
        f"compose --mode merge of a base of {sum(sizes) / MIB:.0f} MiB took {found / MIB:.0f} MiB at its peak, of "
        f"{bound / MIB:.0f} allowed: the largest shard and 512 MiB",
    )
    assert open_checkpoint(tmp_path / "out").types()[HEAD].shape == (8000, 1024)  # transformers was asked for the ties
    assert found < bound
    assert found - max(sizes) + sum(sizes) > bound  # the whole base in memory would show


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_merge_that_is_interrupted_leaves_no_half_output(
    how: signal.Signals, wide: tuple[Path, Shell], tmp_path: Path
) -> None:
    _, shell = wide
    command = [sys.executable, "-m", "loratree_cli", "compose", LEAF, "--mode", "merge", "--out", tmp_path / "out"]
    environment = os.environ | {"LORATREE_HOME": str(shell.home)}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while child.poll() is None and len(list(tmp_path.glob(".out.*/out/*.safetensors"))) < 2:
        time.sleep(0.001)
    child.send_signal(how)
    printed, said = child.communicate(timeout=60)
    assert (child.returncode != 0, printed, "Traceback" in said) == (True, "", False)
    # What a killed process could not remove is hidden, and the next compose removes it.
    assert [path.name.startswith(".out.") for path in tmp_path.iterdir()] == [True] * (how == signal.SIGKILL)
