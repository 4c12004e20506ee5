"""Switching to a user whose adapter is in memory, with few and with many others kept: `python -m benchmarks.kept`.

A base of 4 layers and hidden size 256 has one task with N users of rank 8 on all linear layers. A Composer uses every
user once, so that it keeps all of them, and then switches between 20 of them, by `use` and by `merge`. The same
Composer did so before, when it kept only these. Medians of all switches, in milliseconds; the bar is a ratio of 1.3.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

FEW = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=2000, help="adapters that are kept")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = _measure(Path(folder), options.users)
    print(f"{'':10}{FEW:>8} kept{options.users:>8} kept   ratio")
    for name, (few, many) in rows.items():
        print(f"{name:10}{few:>10.2f} ms{many:>10.2f} ms{many / few:>8.2f}")
    if options.json:
        options.json.write_text(json.dumps(rows))


def _measure(folder: Path, users: int) -> dict[str, tuple[float, float]]:
    from loratree_composer import Composer
    from loratree_registry.embedded.registry import open_embedded
    from loratree_registry.settings import Settings

    registry = open_embedded(Settings.from_environment({"LORATREE_HOME": str(folder / "home")}))
    model, refs = _publish(registry, folder, users)
    composer = Composer(model, registry, home=folder / "home", budget=16 << 30)
    few = {name: _time(switch, refs[:FEW]) for name, switch in (("use", composer.use), ("merge", composer.merge))}
    for ref in refs:
        composer.use(ref)
    kept = len(composer.resident)
    assert kept == users + 1, f"{kept} adapters are kept, not {users} and their task's"
    many = {name: _time(switch, refs[:FEW]) for name, switch in (("use", composer.use), ("merge", composer.merge))}
    registry.close()
    return {name: (few[name], many[name]) for name in few}


def _time(switch: Any, refs: list[str]) -> float:
    """The median of switches between `refs`, in milliseconds; each was used twice before."""
    for ref in (*refs, *refs):
        switch(ref)
    times = []
    for _ in range(12):
        for ref in refs:
            start = time.perf_counter()
            switch(ref)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def _publish(registry: Any, folder: Path, users: int) -> tuple[Any, list[str]]:
    """Publishes a task and its users, random adapters of rank 8, and returns the model and the users' refs."""
    import torch
    from safetensors.torch import save
    from transformers import AutoModelForCausalLM

    from loratree_composer.base.manifest import read_base
    from loratree_registry.core.digests import FileDigest, digest_stream
    from loratree_registry.core.records import Submission
    from tests.tiny import LINEARS, llama

    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
    base = llama(folder / "base", vocab_size=2000, **sizes)
    registry.add_base("base", read_base(base))
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    layers = {name: m for name, m in model.named_modules() if name.rpartition(".")[2] in LINEARS}
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": LINEARS}
    refs = []
    for number in range(users + 1):
        torch.manual_seed(number)
        tensors = {}
        for name, layer in layers.items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(8, layer.in_features) * 0.02
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(layer.out_features, 8) * 0.02
        file = folder / "adapter_model.safetensors"
        file.write_bytes(save(tensors))
        with file.open("rb") as stream:
            sha256, size = digest_stream(stream)
            stream.seek(0)
            registry.upload(stream, sha256=sha256, size=size)
        path, parent = (f"base/task/u{number}", "base/task@1") if number else ("base/task", "base")
        files = [FileDigest(file.name, size, sha256)]
        registry.publish(path, Submission(config=config, files=files, parent=parent, found="explicit"))
        refs.append(path)
    return model, refs[1:]


if __name__ == "__main__":
    main()
