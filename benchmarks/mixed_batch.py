"""A batch with a path for each row, beside what flat adapters need: `python -m benchmarks.mixed_batch`.

The reference model of benchmarks.compose. 64 users under 8 tasks, 4 sub-domains and 1 domain, at ranks 8, 16, 32 and 64
on all linear layers, each user a row of the batch. Three opponents in the same run: the base alone; PEFT's
`adapter_names` over 64 flattened adapters of rank 120; and the flattened factors of all rows multiplied by `torch.bmm`,
which lie in the rows' order, so that nothing is gathered. Each row runs in a child process of its own with
OMP_WAIT_POLICY=PASSIVE, in turn; medians.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compose import LAYERS, SIZES
from benchmarks.rows import Row, interleaved, run_rows

RANKS = (64, 32, 16, 8)  # root to leaf
USERS, TASKS, SUBDOMAINS = 64, 8, 4
PREFILL = 32  # tokens of each row
VOCABULARY = 8000
GROWTH = (8, 64, 512)  # users of one tree, each a row


def main() -> None:
    run_rows("benchmarks.mixed_batch", __doc__, ROWS, prepare=_write_model)


def _write_model(folder: Path) -> None:
    from tests.tiny import llama

    llama(folder / "base", vocab_size=VOCABULARY, num_hidden_layers=LAYERS, **SIZES)


def _model(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder / "base").eval()


def _linears(model: Any) -> dict[str, Any]:
    import torch

    return {
        name: layer for name, layer in model.named_modules() if type(layer) is torch.nn.Linear and name != "lm_head"
    }


def _adapter(model: Any, rank: int, digest: str) -> Any:
    import torch

    from loratree_composer.adapters.adapter import Adapter, Factors

    parts = {}
    for name, layer in _linears(model).items():
        a, b = torch.randn(rank, layer.in_features) * 0.02, torch.randn(layer.out_features, rank) * 0.02
        parts[f"{name}.weight"] = (Factors("Linear", 2.0, a, b),)
    return Adapter(parts, digest)


def _tree(model: Any, users: int) -> list[Any]:
    """The chain of each user: of the domain, of one of 4 sub-domains, of one of 8 tasks, and the user's own."""
    domain = _adapter(model, RANKS[0], "domain")
    subdomains = [_adapter(model, RANKS[1], f"subdomain {at}") for at in range(SUBDOMAINS)]
    tasks = [_adapter(model, RANKS[2], f"task {at}") for at in range(TASKS)]
    return [
        [
            (domain, 1.0),
            (subdomains[at * SUBDOMAINS // users], 1.0),
            (tasks[at * TASKS // users], 1.0),
            (_adapter(model, RANKS[3], f"user {at}"), 1.0),
        ]
        for at in range(users)
    ]


def _flat(chain: Any, name: str) -> tuple[Any, Any]:
    """A chain's factors of one layer side by side, the scale in B: a [Σr, in], b [out, Σr]."""
    import torch

    parts = [adapter.parts[f"{name}.weight"][0] for adapter, _ in chain]
    return torch.cat([part.a for part in parts]), torch.cat([part.scale * part.b for part in parts], dim=1)


def _mixed(folder: Path, name: str, repeats: int) -> list[Row]:
    """One pass over 64 rows: a token of each for decoding, 32 for a prefill."""
    import torch

    from loratree_composer.batch.mixed_batch import MixedBatch
    from loratree_composer.batch.nodes import Nodes

    model = _model(folder)
    chains = _tree(model, USERS)
    pools = {}
    for layer in _linears(model):
        a, b = zip(*(_flat(chain, layer) for chain in chains), strict=True)
        pools[layer] = torch.stack(a), torch.stack(b)
    theirs, flat, base = _peft(_model(folder), pools), _bmm(_model(folder), pools), _model(folder)
    MixedBatch(model, Nodes(model)).set(chains)
    tokens = torch.randint(0, VOCABULARY, (USERS, 1 if name == "mixed-decode" else PREFILL))

    def forward(module: Any, **options: Any) -> Any:
        with torch.inference_mode():
            return module(tokens, use_cache=False, **options).logits

    names = {"adapter_names": [f"user{at}" for at in range(USERS)]}
    expected, ours = forward(flat), forward(model)
    for other, which in ((ours, "ours"), (forward(theirs, **names), "PEFT's")):
        error = float((other - expected).abs().max() / expected.abs().max())
        assert error < 1e-4, f"{which} differs from the flattened product by {error}"
    runs = [partial(forward, model), partial(forward, theirs, **names), partial(forward, flat), partial(forward, base)]
    mine, peft_s, bmm_s, alone = interleaved(runs, repeats=repeats)
    weights = sum(layer.weight.numel() for layer in _linears(base).values()) + base.lm_head.weight.numel()
    extra = sum(a.shape[1] * (a.shape[2] + b.shape[1]) for a, b in pools.values())
    floor = alone * (1 + extra / weights)
    bars = ("≥ 3", "≥ 2", "≤ 1.6") if name == "mixed-decode" else ("≥ 1.3", "≥ 1.3", "≤ 1.2")
    against = (alone, "base alone") if name == "mixed-decode" else (floor, "base and products by arithmetic")
    return [
        Row(name, mine, peft_s, floor, peft_s / mine, "s", "PEFT's adapter_names", bars[0]),
        Row(name, mine, bmm_s, floor, bmm_s / mine, "s", "flattened, torch.bmm", bars[1]),
        Row(name, mine, against[0], floor, mine / against[0], "s", against[1], bars[2]),
    ]


def _peft(model: Any, pools: Any) -> Any:
    """The model with 64 flattened adapters in PEFT, whose factors are the pools' own."""
    import peft

    rank = sum(RANKS)
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(pools), init_lora_weights=False)
    tuned: Any = None
    for at in range(USERS):
        if tuned is None:
            tuned = peft.get_peft_model(model, config, f"user{at}")
        else:
            tuned.add_adapter(f"user{at}", config)
        for layer, (a, b) in pools.items():
            module = tuned.base_model.model.get_submodule(layer)
            module.lora_A[f"user{at}"].weight.data, module.lora_B[f"user{at}"].weight.data = a[at], b[at]
    return tuned.eval()


def _bmm(model: Any, pools: Any) -> Any:
    """The model with every row's flattened factors beside each layer."""
    import torch

    def beside(a: Any, b: Any) -> Callable[..., Any]:
        a, b = a.mT, b.mT.contiguous()

        def add(_: Any, given: Any, y: Any) -> Any:
            return y.baddbmm_(torch.bmm(given[0], a), b)

        return add

    for name, (a, b) in pools.items():
        model.get_submodule(name).register_forward_hook(beside(a, b))
    return model


def _bytes(folder: Path, name: str, _: int) -> list[Row]:
    """The bytes of the factors that are held, beside those of the tree's own rank rows, and of flattened ones."""
    from loratree_composer.batch.nodes import Nodes

    model = _model(folder)
    chains, nodes = _tree(model, USERS), Nodes(model)
    nodes.hold(chains)
    sizes = sum(layer.in_features + layer.out_features for layer in _linears(model).values()) * 4
    own = {adapter.digest: adapter.nbytes for chain in chains for adapter, _ in chain}
    floor, flat = sum(own.values()), USERS * sum(RANKS) * sizes
    assert floor == (RANKS[0] + SUBDOMAINS * RANKS[1] + TASKS * RANKS[2] + USERS * RANKS[3]) * sizes
    return [
        Row(name, nodes.nbytes / 1e6, flat / 1e6, floor / 1e6, nodes.nbytes / floor, "MB", "theirs: flat", "≤ 1.05")
    ]


def _growth(folder: Path, name: str, repeats: int) -> list[Row]:
    """The time of one token of each user, for 8, 64 and 512 users of one tree; the ratio is to the row before."""
    import torch

    from loratree_composer.batch.mixed_batch import MixedBatch
    from loratree_composer.batch.nodes import Nodes

    model, base = _model(folder), _model(folder)
    chains = _tree(model, max(GROWTH))
    batch, rows, before = MixedBatch(model, Nodes(model)), list[Row](), None
    for users in GROWTH:
        batch.set(chains[:: max(GROWTH) // users])
        tokens = torch.randint(0, VOCABULARY, (users, 1))

        def forward(module: Any, given: Any = tokens) -> Any:
            with torch.inference_mode():
                return module(given, use_cache=False).logits

        mine, alone = interleaved([partial(forward, model), partial(forward, base)], repeats=repeats)
        each = 1000 * mine / users
        ratio = each / before if before else None
        rows.append(Row(name, each, None, 1000 * alone / users, ratio, "ms", f"{users} users", "< 1"))
        before = each
    return rows


ROWS: dict[str, Callable[[Path, str, int], list[Row]]] = {
    "mixed-decode": _mixed,
    "mixed-prefill": _mixed,
    "mixed-bytes": _bytes,
    "mixed-growth": _growth,
}

if __name__ == "__main__":
    main()
