"""What the kept inspections save: publishing 35 MB adapters with and without them, in turn (decision 13)."""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import peft
import transformers
from safetensors.torch import load_file, save_file

from loratree_composer import read_base
from loratree_registry.catalog.inspection import Inspections
from loratree_registry.embedded.registry import EmbeddedRegistry, open_embedded
from loratree_registry.settings import Settings
from loratree_registry.workspace.publish import publish_directory
from tests import s3

WEIGHTS = "adapter_model.safetensors"


class NoInspections(Inspections):
    """Inspections of which none is kept: publish reads the stored bytes again."""

    @contextmanager
    def keeping(self, *_: Any) -> Iterator[Any]:
        yield None


def make_adapter(folder: Path) -> Path:
    """Write a base of 8 layers of 1,024 and an adapter of rank 64 on all of its linear layers."""
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.LoraConfig(r=64, target_modules="all-linear", init_lora_weights=False)
        peft.get_peft_model(model, settings).save_pretrained(folder / "adapter")
    return folder / "adapter"


def variant(adapter: Path, folder: Path, number: int) -> Path:
    """Write the adapter with one other value."""
    tensors = load_file(adapter / WEIGHTS)
    next(iter(tensors.values())).view(-1)[0] = float(number)
    folder.mkdir()
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    return folder


def measure(registry: EmbeddedRegistry, adapter: Path, folder: Path, pairs: int) -> dict[str, list[float]]:
    """Publish in turn with and without kept inspections; return the seconds of each."""
    kinds = {"with": registry._inspections, "without": NoInspections()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(2 * (pairs + 1)):
        kind = list(kinds)[number % 2]
        registry._inspections = kinds[kind]
        directory = variant(adapter, folder / "variant", number)
        began = time.perf_counter()
        publish_directory(registry, directory, f"wide/n{number}", parent="base", home=folder / "home")
        seconds[kind].append(time.perf_counter() - began)
        shutil.rmtree(directory)
    return {kind: taken[1:] for kind, taken in seconds.items()}  # the first of each opens connections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", choices=("local", "moto"), default="local")
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, s3.moto() if options.store == "moto" else nullcontext() as server:
        folder = Path(name)
        environment = {"LORATREE_HOME": str(folder / "home")}
        if server is not None:
            os.environ.update(server.environment)
            server.client().create_bucket(Bucket="bench")
            environment |= {"LORATREE_BLOBS": "s3://bench/x", "LORATREE_S3_ENDPOINT": server.endpoint}
        adapter = make_adapter(folder)
        size = (adapter / WEIGHTS).stat().st_size
        registry = open_embedded(Settings.from_environment(environment))
        registry.add_base("wide", read_base(folder / "base"))
        medians = {
            kind: statistics.median(seconds)
            for kind, seconds in measure(registry, adapter, folder, options.pairs).items()
        }
        registry.close()
    print(
        f"{options.store}: publishing {size / 1e6:.1f} MB took {medians['with']:.3f} s with kept inspections, "
        f"{medians['without']:.3f} s without: {medians['without'] / medians['with']:.2f} times"
    )


if __name__ == "__main__":
    main()
