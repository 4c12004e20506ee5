"""A kept sum of the ancestors: the same bits, and only what differs is written."""

import itertools

import pytest
import torch
from torch import nn

from loratree_composer.adapters.budget import Budget, Cache
from loratree_composer.arithmetic.edits import Add
from loratree_composer.arithmetic.program import ChainStep, Program, programs
from loratree_composer.live.merged_weights import MergedWeights
from tests.composer import chains
from tests.composer.reference_sums import random_delta

SHAPES = {"0": (300, 48), "1": (2100, 300), "2": (20, 2100)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(inp, out) for out, inp in SHAPES.values())).to(dtype)


def level(digest: str, rank: int, *layers: str, weight: float = 1.0) -> ChainStep:
    seed = sum(map(ord, digest))
    deltas = {name: random_delta(*SHAPES[name], rank, seed=seed + int(name)) for name in layers}
    return ChainStep(digest, weight, {f"{name}.weight": (Add(delta),) for name, delta in deltas.items()})


TOP, MIDDLE = level("top", 8, "0", "1"), level("middle", 6, "1", "2")


def chain(user: str, *layers: str) -> dict[str, Program]:
    return programs([TOP, MIDDLE, level(user, 3, *layers)])


def versions(module: nn.Module) -> dict[str, int]:
    """How often each parameter was written to."""
    return {name: parameter._version for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_kept_prefix_gives_the_same_bits_as_a_merge_from_nothing(dtype: torch.dtype) -> None:
    used, merges = model(dtype), None
    merges = MergedWeights(used)
    orders = [
        ("ann", ("0", "1", "2")),
        ("bob", ("1",)),
        ("cy", ("0", "2")),
        ("ann", ("0", "1", "2")),
        ("di", ("2", "1")),
    ]
    for user, layers in [*orders, *reversed(orders)]:
        merges.merge(chain(user, *layers))
        fresh = model(dtype)
        MergedWeights(fresh, prefixes=False).merge(chain(user, *layers))
        assert chains.state_digest(used) == chains.state_digest(fresh)
    merges.restore()
    assert chains.state_digest(used) == chains.state_digest(model(dtype))


def test_what_two_chains_have_in_common_is_not_written_again() -> None:
    used = model(torch.float32)
    merges = MergedWeights(used)
    merges.merge(chain("ann", "2"))
    before = versions(used)
    merges.merge(chain("bob", "2"))
    after = versions(used)
    assert [name for name in after if after[name] != before[name]] == ["2.weight"]
    merges.merge(chain("bob", "2"))
    assert versions(used) == after


def test_the_ancestors_are_summed_once_for_all_their_leaves() -> None:
    made = []

    class Counted(dict[str, tuple[Add, ...]]):
        def __getitem__(self, name: str) -> tuple[Add, ...]:
            made.append(name)
            return super().__getitem__(name)

    above = ChainStep("above", 1.0, Counted(TOP.edits))  # type: ignore[arg-type]
    merges = MergedWeights(model(torch.float32))
    for user in ("ann", "bob", "cy", "di", "ed"):
        merges.merge(programs([above, level(user, 2, "0", "1")]))
    assert made == ["0.weight", "1.weight"] * 2


def test_a_level_without_a_digest_is_never_taken_for_known() -> None:
    used = model(torch.float32)
    merges = MergedWeights(used)
    for seed in (1, 2, 3):
        unnamed = ChainStep("", 1.0, {"0.weight": (Add(random_delta(300, 48, 4, seed=seed)),)})
        merges.merge(programs([unnamed, level("ann", 2, "0")]))
        fresh = model(torch.float32)
        MergedWeights(fresh).merge(programs([unnamed, level("ann", 2, "0")]))
        assert chains.state_digest(used) == chains.state_digest(fresh)


def test_another_level_weight_is_another_sum() -> None:
    digests = set()
    merges = MergedWeights(used := model(torch.float32))
    for above, leaf in itertools.product((1.0, 0.5), repeat=2):
        halves = random_delta(300, 48, 4, seed=1)
        scaled = ChainStep("above", above, {"0.weight": (Add(type(halves)(halves.a, halves.b * above)),)})
        ends = ChainStep("leaf", leaf, {"0.weight": (Add(type(halves)(halves.a, halves.b * leaf * 3)),)})
        merges.merge(programs([scaled, ends]))
        digests.add(chains.state_digest(used))
    assert len(digests) == 4


def test_release_frees_what_is_kept_and_the_next_merge_is_the_same() -> None:
    used = model(torch.bfloat16)
    merges = MergedWeights(used)
    for _ in range(3):
        merges.merge(chain("ann", "0", "1"))
    first = chains.state_digest(used)
    merges.release()
    assert chains.state_digest(used) == chains.state_digest(model(torch.bfloat16))
    merges.merge(chain("ann", "0", "1"))
    assert chains.state_digest(used) == first


def test_sums_are_made_for_a_whole_chain_or_not_at_all() -> None:
    sizes = sum(4 * out * inp for out, inp in SHAPES.values())
    for limit, expected in ((sizes - 1, 0), (sizes, sizes)):
        budget = Budget(limit)
        merges = MergedWeights(model(torch.float32), budget=budget)
        for user in ("ann", "bob", "cy"):
            merges.merge(chain(user, "0", "1", "2"))
        assert budget.held("prefix sums") == expected


def test_sums_give_way_to_what_another_cache_keeps() -> None:
    budget = Budget(sum(4 * out * inp for out, inp in SHAPES.values()) + 100)
    used = model(torch.float32)
    merges, cache = MergedWeights(used, budget=budget), Cache[str](budget, "adapters", share=0.5)
    for user in ("ann", "bob"):
        merges.merge(chain(user, "0", "1", "2"))
    cache.put("small", "value", 100)
    assert budget.held("prefix sums") > 0
    cache.put("large", "value", 200)
    assert (budget.held("prefix sums"), budget.held("adapters")) == (0, 300)
    merges.merge(chain("cy", "0", "1", "2"))
    fresh = model(torch.float32)
    MergedWeights(fresh, prefixes=False).merge(chain("cy", "0", "1", "2"))
    assert chains.state_digest(used) == chains.state_digest(fresh)
