"""Whatever was merged, restored, written, cast or interrupted before: a merge is the same merge."""

import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loratree_composer.arithmetic.edits import Add, Replace, Rescale
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.merge import merged
from loratree_composer.arithmetic.program import ChainStep, Program, programs
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.stack import Stack
from loratree_registry.errors import Invalid
from tests import tiny
from tests.composer import chains
from tests.composer.reference_sums import adding, random_delta
from tests.examples import examples

SHAPES = {"a": (1100, 12), "b": (20, 1100), "c": (6, 20)}


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(inp, out) for name, (out, inp) in SHAPES.items()}).to(dtype)


def level(digest: str, layers: str, *, replaces: str = "") -> ChainStep:
    """A level by its digest: deltas on some layers, whole values for others."""
    seed = sum(map(ord, digest)) * 7
    edits: dict[str, Any] = {
        f"{name}.weight": (Add(random_delta(*SHAPES[name], rank=3, seed=seed + ord(name))),) for name in layers
    }
    for name in replaces:
        generator = torch.Generator().manual_seed(seed)
        edits[f"{name}.weight"] = (Replace(torch.randn(*SHAPES[name], generator=generator)),)
    return ChainStep(digest, 1.0, edits)


CHAINS = {
    "top": [level("top", "ab")],
    "parent": [level("top", "ab"), level("mid", "ab")],
    "leaf beside": [level("top", "ab"), level("mid", "ab"), level("leaf", "c")],
    "leaf on one": [level("top", "ab"), level("mid", "ab"), level("other", "a")],
    "leaf on all": [level("top", "ab"), level("mid", "ab"), level("third", "abc")],
    "leaf replaces": [level("top", "ab"), level("mid", "ab"), level("saved", "b", replaces="a")],
    "another tree": [level("x", "bc"), level("y", "abc")],
}
STEPS = [*CHAINS, "restore", "write", "cast", "write merged"]


def fresh(model: nn.Module, name: str) -> str:
    """The state's digest when a chain is merged into a model of the same values by one who knows nothing before."""
    copy = net(next(model.parameters()).dtype)
    copy.load_state_dict(model.state_dict())
    MergedWeights(copy, prefixes=False).merge(programs(CHAINS[name]))
    return chains.state_digest(copy)


@settings(max_examples=examples(60), deadline=None)
@given(steps=st.lists(st.sampled_from(STEPS), min_size=2, max_size=9))
def test_a_merge_is_the_same_whatever_came_before(steps: list[str]) -> None:
    model = net()
    merges, base = MergedWeights(model), net()
    for step in steps:
        if step in CHAINS:
            merges.merge(programs(CHAINS[step]))
            assert chains.state_digest(model) == fresh(base, step)
        elif step == "write merged":
            with torch.no_grad():
                model.get_parameter("a.weight").fill_(3)
            if not merges.names or "a.weight" not in merges.names:
                base.load_state_dict({**base.state_dict(), "a.weight": torch.full((1100, 12), 3.0)})
        else:
            merges.restore()
            assert chains.state_digest(model) == chains.state_digest(base)
            for module in (model, base):
                if step == "write":
                    with torch.no_grad():
                        module.get_parameter("a.weight").add_(1)
                elif step == "cast":
                    module.to(torch.bfloat16)
    merges.restore()
    assert chains.state_digest(model) == chains.state_digest(base)


def injected(run: Callable[[], object], count: int) -> bool:
    """Runs with a KeyboardInterrupt at the count-th line of the composer's code; tells whether it came to that."""
    lines = iter(range(count))

    def trace(frame: FrameType, event: str, _: object) -> Any:
        # A tracer, unlike a signal, could raise where a `with` gives its lock back, and the lock would stay taken.
        if "loratree_composer" not in frame.f_code.co_filename or frame.f_code.co_filename.endswith("precision.py"):
            return None
        if event == "line" and next(lines, None) is None:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        run()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def places() -> Iterator[int]:
    """Every early line and a sample of the later ones."""
    chooser = random.Random(0)
    yield from range(60)
    yield from sorted(chooser.sample(range(60, 1500), 90))


def test_an_interrupt_at_any_line_of_a_merge_leaves_the_base_whole(tmp_path: Path) -> None:
    model = chains.load(tiny.llama(tmp_path / "tied", tie_word_embeddings=True, num_hidden_layers=1))
    before = chains.state_digest(model)
    first = adding({"model.layers.0.mlp.up_proj": random_delta(56, 32, 2, seed=0)}) | adding(
        {"lm_head": random_delta(96, 32, 2, seed=1)}
    )
    second = adding({"model.embed_tokens": random_delta(96, 32, 2, seed=2)}, "Embedding") | adding(
        {"lm_head": random_delta(96, 32, 2, seed=3)}
    )
    came = 0
    for count in places():
        merges = MergedWeights(model)
        merges.merge(first)
        held = chains.state_digest(model)
        if injected(partial(merges.merge, second), count):
            came += 1
            # Before its first line has run, nothing has happened yet.
            assert chains.state_digest(model) in ((before, held) if count < 2 else (before,))
        merges.restore()
        assert chains.state_digest(model) == before
        assert model.get_submodule("lm_head").weight is model.get_submodule("model.embed_tokens").weight
    assert came > 80


def test_an_interrupted_restore_is_finished_by_the_next(tmp_path: Path) -> None:
    model = chains.load(tiny.llama(tmp_path / "tied", tie_word_embeddings=True, num_hidden_layers=1))
    before = chains.state_digest(model)
    chain = adding(
        {"lm_head": random_delta(96, 32, 2, seed=1), "model.layers.0.mlp.up_proj": random_delta(56, 32, 2, seed=0)}
    )
    for count in range(0, 160, 3):
        merges = MergedWeights(model)
        merges.merge(chain)
        injected(merges.restore, count)
        merges.restore()
        assert chains.state_digest(model) == before


def test_switching_between_chains_that_untie_other_names_is_a_fresh_merge(tmp_path: Path) -> None:
    base = tiny.llama(tmp_path / "tied", tie_word_embeddings=True)
    head = adding({"lm_head": random_delta(96, 32, 2, seed=0)})
    tokens = adding({"model.embed_tokens": random_delta(96, 32, 2, seed=1)}, "Embedding")
    both = adding({"lm_head": random_delta(96, 32, 2, seed=2)}) | adding(
        {"model.embed_tokens": random_delta(96, 32, 2, seed=3)}, "Embedding"
    )
    model = chains.load(base)
    before, merges = chains.state_digest(model), MergedWeights(model)
    for chain in (head, both, tokens, both, head, tokens, head, both, both):
        merges.merge(chain)
        new = chains.load(base)
        MergedWeights(new).merge(chain)
        assert chains.state_digest(model) == chains.state_digest(new)
    merges.restore()
    assert chains.state_digest(model) == before


def test_what_the_caller_wrote_to_a_merged_tensor_is_merged_over() -> None:
    model, other = net(), net()
    merges = MergedWeights(model)
    merges.merge(programs(CHAINS["parent"]))
    expected = chains.state_digest(model)
    model.load_state_dict(other.state_dict())
    merges.merge(programs(CHAINS["parent"]))
    assert chains.state_digest(model) == expected


def test_a_weight_in_another_memory_order_has_the_bits_of_a_contiguous_one() -> None:
    delta, weight = random_delta(1025, 300, 16, seed=0), torch.randn(300, 1025).t()
    expected = merged(weight.contiguous(), [Add(delta)], name="w")
    assert torch.equal(merged(weight, [Add(delta)], name="w"), expected)
    model = nn.Module()
    model.weight = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
    assert not model.weight.is_contiguous()
    for prefixes in (False, True):
        merges = MergedWeights(model, prefixes=prefixes)
        for seed in (1, 2, 3):
            leaf = ChainStep(f"leaf{seed}", 1.0, {"weight": (Add(random_delta(1025, 300, 4, seed=seed), "Other"),)})
            merges.merge(programs([ChainStep("above", 1.0, {"weight": (Add(delta, "Other"),)}), leaf]))
            found = merged(weight.contiguous(), [Add(delta), *leaf.edits["weight"]], name="w")
            assert torch.equal(model.weight, found)
        merges.restore()


def test_an_expanded_weight_gets_memory_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].weight = nn.Parameter(torch.ones(1, 3).expand(4, 3))
    merges, delta = MergedWeights(model), random_delta(4, 3, 2, seed=0)
    merges.merge(adding({"0": delta}))
    torch.testing.assert_close(model[0].weight.detach(), 1 + delta.delta())
    merges.restore()
    assert model[0].weight.stride() == (0, 1)


@pytest.mark.parametrize(
    "weight",
    [torch.zeros(4, 3).to(torch.int8), torch.zeros(4, 3, device="meta"), torch.zeros(4, 3).to(torch.float8_e4m3fn)],
)
def test_weights_that_take_no_delta_are_refused_in_both_forms(weight: torch.Tensor) -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    model[0].weight = nn.Parameter(weight, requires_grad=False)
    chain: dict[str, Program] = adding({"0": random_delta(4, 3, 2, seed=0)})
    for put_on in (lambda: MergedWeights(model).merge(chain), lambda: Stack(model, chain)):
        with pytest.raises(Invalid, match=r"0\.weight (holds no values|is torch\.\w+ and takes no deltas)"):
            put_on()


def test_all_that_can_be_restored_is_and_the_rest_is_named() -> None:
    model = net()
    before, merges = net().state_dict(), MergedWeights(model)
    merges.merge(programs(CHAINS["leaf on all"]))
    model.get_submodule("a").weight = nn.Parameter(torch.zeros(3, 1100, 12))
    del model["b"]
    with pytest.raises(Invalid, match=r"not all of the base is back \(a\.weight is gone.*b\.weight is gone"):
        merges.restore()
    assert torch.equal(model.get_parameter("c.weight"), before["c.weight"])
    assert not model.get_parameter("a.weight").any()
    with pytest.raises(Invalid, match=r"not all of the base is back \(a\.weight is gone.*b\.weight is gone"):
        merges.restore()  # it tries again
    with pytest.raises(Invalid, match="not all of the base is back"):
        merges.release()
    merges.restore()
    assert merges.names == []


def test_norms_that_overflow_in_float32_still_rescale() -> None:
    weight = torch.full((4, 8), 1e20, dtype=torch.bfloat16)
    nothing = LowRank(torch.zeros(1, 8), torch.zeros(4, 1))
    result = merged(weight, [Rescale(nothing, torch.ones(4))], name="w")
    torch.testing.assert_close(result.float(), torch.full((4, 8), 8**-0.5), rtol=4e-3, atol=0)


def test_nothing_of_a_merge_is_kept_for_autograd() -> None:
    model = net()
    merges = MergedWeights(model)
    merges.merge(programs(CHAINS["parent"]))
    assert all(parameter.is_leaf and parameter.grad_fn is None for parameter in model.parameters())
    weight = torch.randn(4, 8, requires_grad=True)
    assert not merged(weight, [Add(random_delta(4, 8, 2, seed=0))], name="w").requires_grad
