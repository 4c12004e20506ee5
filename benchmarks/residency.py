"""Versions in memory, and what a switch between them costs: `python -m benchmarks.residency`.

`ram-2000`: two thousand adapters of rank 8 for the reference model of benchmarks.compose, each published and prefetched
to where batches take them from, which on a CPU is RAM. They share one file and differ in lora_alpha, so the disk holds
one of them and memory holds two thousand. Bytes are what the process grew by, beside the files' own. The switch is
`batch.assign` of another path's Resolution; the opponent is PEFT's `set_adapter` between 16 adapters. `zipf`: threads
ask for leaves of a tree of 10,000 by Zipf's law, with room for a tenth of them; the hit rate is beside that of a least
recently used cache that is asked in the trace's order. Each row runs in a process of its own; medians.
"""

import gc
import os
import random
import statistics
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

from benchmarks.compose import LAYERS, SIZES
from benchmarks.rows import Row, interleaved, run_rows

ADAPTERS = int(os.environ.get("LORATREE_TEST_BENCH_ADAPTERS", "2000"))  # fewer make a quick look
LEAVES = 5 * ADAPTERS
REQUESTS = 5 * LEAVES
THREADS = 16
PEFT_ADAPTERS = 16
_PAGE = os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    run_rows("benchmarks.residency", __doc__, ROWS, prepare=lambda _: None)


def _publish(folder: Path, count: int, *, rank: int, **sizes: Any) -> tuple[Any, list[str]]:
    """A registry with a domain and `count` users below it, and their paths; the users' adapters share one file."""
    from loratree_composer.base.manifest import read_base
    from loratree_registry.core.records import Submission
    from loratree_registry.embedded.registry import open_embedded
    from loratree_registry.settings import Settings
    from loratree_registry.workspace.adapter_directory import read_adapter_directory
    from tests import tiny

    base = tiny.llama(folder / "base", **sizes)
    adapter = read_adapter_directory(tiny.adapter(base, folder / "adapter", rank=rank, alpha=rank))
    registry = open_embedded(Settings.from_environment({"LORATREE_HOME": str(folder / "home")}))
    registry.add_base("tiny", read_base(base))
    with adapter.weights.open("rb") as stream:
        registry.upload(stream, sha256=adapter.file.sha256, size=adapter.file.size)
    paths = ["tiny/domain", *(f"tiny/domain/user{at}" for at in range(count))]
    for at, path in enumerate(paths):
        config = adapter.config | {"lora_alpha": rank * (1 + at / count)}
        parent = "tiny/domain" if at else "base"
        registry.publish(path, Submission(config=config, files=[adapter.file], parent=parent, found="explicit"))
    return registry, paths[1:]


def _ram(root: Path, name: str, repeats: int) -> list[Row]:
    """The memory of many adapters, and the time of a switch between two of them."""
    import transformers

    from loratree_composer import Composer
    from loratree_composer.adapters.tiers import Tiers
    from tests.opened import opened

    folder = root / name
    registry, paths = _publish(folder, ADAPTERS, rank=8, vocab_size=8000, num_hidden_layers=LAYERS, **SIZES)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    composer = Composer(model, registry, home=folder / "home", tiers=Tiers(ram=0, device=1 << 40))
    composer.prefetch(paths[:8]).result()
    resolved = [registry.resolve(path) for path in paths]
    before, held = _resident(), composer.residency().device
    composer.prefetch(resolved[8:]).result()
    grown, now = _resident() - before, composer.residency().device
    own = (len(paths) - 8) * _tensor_bytes(folder / "adapter" / "adapter_model.safetensors")
    assert now.held is not None
    assert held.held is not None
    chosen = random.Random(0).choices(resolved, k=200 * repeats)
    seconds = []
    with composer.batch([resolved[0]]) as batch, opened() as files:
        for resolution in chosen:
            start = time.perf_counter()
            batch.assign([resolution])
            seconds.append(time.perf_counter() - start)
    assert files == [], files[:3]
    assert composer.residency().device.misses == now.misses
    theirs = _peft_switch(folder, repeats)
    mine = 1000 * statistics.median(seconds)
    return [
        Row(name, grown / 1e6, None, own / 1e6, grown / own, "MB", "grown by", "≤ 1.02"),
        Row(name, (now.held - held.held) / 1e6, None, own / 1e6, (now.held - held.held) / own, "MB", "counted"),
        Row(name, mine, 1000 * theirs, None, 1000 * theirs / mine, "ms", "a switch, no file", "≤ 1 ms"),
    ]


def _peft_switch(folder: Path, repeats: int) -> float:
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    tuned = peft.PeftModel.from_pretrained(model, folder / "adapter", adapter_name="0")
    for at in range(1, PEFT_ADAPTERS):
        tuned.load_adapter(folder / "adapter", adapter_name=str(at))
    turn = iter(range(1 << 30))

    def switch() -> None:
        tuned.set_adapter(str(next(turn) % PEFT_ADAPTERS))

    (seconds,) = interleaved([switch], repeats=5 * repeats)
    return seconds


def _zipf(root: Path, name: str, _: int) -> list[Row]:
    """The hit rate of 16 threads, beside an ideal cache's, and how often an adapter was loaded twice at once."""
    from loratree_composer.adapters import reader
    from loratree_composer.adapters.tiers import Tiers

    folder = root / name
    registry, paths = _publish(folder, LEAVES, rank=2)
    resolved = [registry.resolve(path) for path in paths]
    trace = _trace()
    size = _tensor_bytes(folder / "adapter" / "adapter_model.safetensors")
    room = LEAVES // 10 + 1  # the domain, which every request takes
    read, loading, twice, lock = reader.read_adapter, Counter[str](), Counter[str](), threading.Lock()

    def counted(*args: Any, digest: str = "", **options: Any) -> Any:
        with lock:
            loading[digest] += 1
            twice[digest] += loading[digest] > 1
        try:
            return read(*args, digest=digest, **options)
        finally:
            with lock:
                loading[digest] -= 1

    reader.read_adapter = counted  # type: ignore[attr-defined]
    adapters = reader.AdapterReader(
        registry, registry.base_manifest("tiny"), folder / "home", tiers=Tiers(ram=room * size)
    )
    turns = iter(trace)

    def ask(_: int) -> None:
        while True:
            with lock:
                at = next(turns, None)
            if at is None:
                return
            adapters.load_chain(resolved[at])

    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(ask, range(THREADS)))
    seconds = time.perf_counter() - start
    found = adapters.read_ram()
    mine = 100 * (found.hits - len(trace)) / len(trace)  # without the domain's hits, one a request
    ideal = 100 * _ideal_hits(trace, room - 1) / len(trace)
    assert found.hits + found.misses == 2 * len(trace)
    return [
        Row(name, mine, None, ideal, mine / ideal, "%", f"hits, {THREADS} threads; floor: an ideal LRU", "2 points"),
        Row(name, float(sum(twice.values())), None, 0.0, None, "", "loads of what is being loaded", "0"),
        Row(name, len(trace) / seconds, None, None, None, "/s", "chains asked for"),
    ]


def _trace() -> list[int]:
    weights = list(accumulate(1 / rank for rank in range(1, LEAVES + 1)))
    order = random.Random(1).sample(range(LEAVES), LEAVES)
    return [order[at] for at in random.Random(2).choices(range(LEAVES), cum_weights=weights, k=REQUESTS)]


def _ideal_hits(trace: list[int], room: int) -> int:
    kept, hits = OrderedDict[int, None](), 0
    for at in trace:
        if at in kept:
            hits += 1
            kept.move_to_end(at)
        else:
            kept[at] = None
            if len(kept) > room:
                kept.popitem(last=False)
    return hits


def _tensor_bytes(file: Path) -> int:
    from safetensors.torch import load_file

    return sum(tensor.nbytes for tensor in load_file(file).values())


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


ROWS: dict[str, Callable[[Path, str, int], list[Row]]] = {"ram-2000": _ram, "zipf": _zipf}

if __name__ == "__main__":
    main()
