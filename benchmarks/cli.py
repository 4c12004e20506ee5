"""What the commands take with a real model, in seconds and memory: `python -m benchmarks.cli [--layers 2,6]`.

SmolLM2-135M in bfloat16 (LORATREE_TEST_SMOLLM2 names a folder to keep it in) gets two levels of rank 16 on all linear
layers, and each command runs in a process of its own, three times: the median of its seconds, and its peak resident
memory, which counts the pages of mapped files. With `--layers`, so do bases of random values in the shape of Llama 3.1
8B with that many layers of its 32, and a line through the two of them gives the cost of all 32. The files are in the
page cache, as after a download.
"""

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.peak_memory import run_command

RANK, WHOLE = 16, 32
MIB = 1 << 20
Costs = dict[str, tuple[float, float]]  # seconds and MiB, by command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", help="two numbers of layers, for example 2,6: needs 12 GB of disk")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    from tests.smollm2 import smollm2

    columns: dict[str, Costs] = {}
    with tempfile.TemporaryDirectory() as folder:
        kept = os.environ.get("LORATREE_TEST_SMOLLM2")
        base = smollm2(Path(kept) if kept else Path(folder))
        columns["SmolLM2-135M"] = _measure(base, Path(folder) / "smollm2-home", options.repeats)
    counts = [int(count) for count in options.layers.split(",")] if options.layers else []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            base = _write_wide(Path(folder) / "base", count)
            columns[f"8B, {count} layers"] = _measure(base, Path(folder) / "home", options.repeats)
    if len(counts) == 2:
        few, many = (columns[f"8B, {count} layers"] for count in counts)
        columns[f"8B, {WHOLE} by line"] = {name: _extend(counts, few[name], many[name]) for name in few}
    _print(columns)
    if options.json:
        options.json.write_text(json.dumps(columns, indent=2) + "\n")


def _measure(base: Path, home: Path, repeats: int) -> Costs:
    """Return the cost of each command; what a command makes is removed before it runs again."""
    size = sum(file.stat().st_size for file in base.glob("*.safetensors")) / MIB
    costs: Costs = {"(the base's files)": (0.0, size)}
    out = home.parent / "out"
    adapters = [_write_adapter(base, home.parent / f"adapter{level}", level) for level in (1, 2)]
    costs["base add"] = _cost([_run(home, ["base", "add", "model", base]) for _ in range(repeats)])
    _run(home, ["publish", adapters[0], "model/domain", "--parent", "base"])
    names = [f"model/domain/task{number}" for number in range(repeats)]
    costs["publish"] = _cost([_run(home, ["publish", adapters[1], name, "--parent", "model/domain"]) for name in names])
    leaf = names[-1]
    for arguments in (["resolve", leaf], ["ls", "model"], ["lineage", leaf]):
        costs[arguments[0]] = _cost([_run(home, arguments) for _ in range(repeats)])
    for mode in ("flatten", "merge"):
        made = []
        for number in range(repeats):
            target = out / f"{mode}{number}"
            made.append(_run(home, ["compose", leaf, "--mode", mode, "--out", target]))
            for file in target.iterdir():
                file.unlink()
        costs[f"compose --mode {mode}"] = _cost(made)
    return costs


def _run(home: Path, arguments: list[Any]) -> tuple[float, int]:
    return run_command(home, arguments, timeout=1200)


def _cost(taken: list[tuple[float, int]]) -> tuple[float, float]:
    """The medians of seconds, and of peak memory in MiB."""
    return statistics.median(seconds for seconds, _ in taken), statistics.median(peak for _, peak in taken) / MIB


def _extend(counts: list[int], few: tuple[float, float], many: tuple[float, float]) -> tuple[float, float]:
    """Return seconds and memory at WHOLE layers, on the line through two measurements, and never below the second."""
    share = (WHOLE - counts[0]) / (counts[1] - counts[0])
    seconds, memory = (one + max(0, other - one) * share for one, other in zip(few, many, strict=True))
    return max(seconds, many[0]), max(memory, many[1])


def _print(columns: dict[str, Costs]) -> None:
    print(f"{'':26}" + "".join(f"{name:>24}" for name in columns))
    for name in next(iter(columns.values())):
        cells = (f"{seconds:>11.2f} s{peak:>7.0f} MiB" for seconds, peak in (costs[name] for costs in columns.values()))
        print(f"{name:<26}" + "".join(f"{cell:>24}" for cell in cells))


def _write_wide(directory: Path, layers: int) -> Path:
    """Write a base in the shape of Llama 3.1 8B, with fewer layers, in files of eight layers each."""
    import transformers

    from tests.wide import write_wide

    config = transformers.LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )

    def file_of(name: str) -> str:
        parts = name.split(".")
        number = int(parts[2]) // 8 if "layers" in parts else 0 if "embed_tokens" in parts else (layers - 1) // 8
        return f"model-{number}.safetensors"

    return write_wide(directory, config, file_of)


def _write_adapter(base: Path, directory: Path, seed: int) -> Path:
    """Write an adapter of rank RANK on all linear layers, in bfloat16, as PEFT names its tensors."""
    import peft
    import torch
    from safetensors.torch import save_file

    from loratree_registry.tensor_files.checkpoint import open_checkpoint
    from tests.tiny import LINEARS

    torch.manual_seed(seed)
    peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEARS).save_pretrained(str(directory))
    tensors = {}
    for name, kind in open_checkpoint(base).types().items():
        if name.split(".")[-2] in LINEARS:
            key, (out, inp) = f"base_model.model.{name.removesuffix('.weight')}", kind.shape
            tensors[f"{key}.lora_A.weight"] = (torch.randn(RANK, inp) * 0.01).bfloat16()
            tensors[f"{key}.lora_B.weight"] = (torch.randn(out, RANK) * 0.01).bfloat16()
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory


if __name__ == "__main__":
    main()
