import random
from pathlib import Path

import pytest
import torch
from torch import nn

from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.base.sharing import tensors
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.pristine import PristinePlace
from loratree_registry.errors import Invalid
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Tree
from tests.composer.reference_sums import adding, excess, random_delta


def random_deltas(model: nn.Module, seed: int) -> dict[str, LowRank]:
    """Deltas of random ranks on a random half of the model's Linear layers."""
    chooser = random.Random(seed)
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    chosen = chooser.sample(sorted(linears), len(linears) // 2)
    return {
        name: random_delta(*linears[name].weight.shape, rank=chooser.randint(1, 12), seed=chooser.randrange(10**6))
        for name in chosen
    }


@pytest.mark.parametrize("pristine", ["host", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_base_hashes_the_same_after_a_hundred_merges_and_a_restore(
    llama: Tree, dtype: torch.dtype, pristine: PristinePlace
) -> None:
    model = chains.load(llama.base, dtype)
    before, merges = chains.state_digest(model), MergedWeights(model, pristine=pristine)
    seen = set()
    for seed in range(100):
        merges.merge(adding(random_deltas(model, seed)))
        seen.add(chains.state_digest(model))
        if seed % 7 == 0:
            merges.restore()
            assert chains.state_digest(model) == before
    merges.restore()
    assert chains.state_digest(model) == before
    assert len(seen) == 100
    assert merges.names == []


def test_a_merge_gives_the_same_bits_whatever_was_merged_before(llama: Tree) -> None:
    fresh, used = chains.load(llama.base, torch.bfloat16), chains.load(llama.base, torch.bfloat16)
    MergedWeights(fresh).merge(adding(random_deltas(fresh, 3)))
    merges = MergedWeights(used)
    for seed in (1, 2, 3):
        merges.merge(adding(random_deltas(used, seed)))
    assert chains.state_digest(used) == chains.state_digest(fresh)


def test_every_merged_weight_is_within_the_bound(llama: Tree) -> None:
    model, base = chains.load(llama.base, torch.bfloat16), chains.load(llama.base, torch.bfloat16)
    deltas = random_deltas(model, 5)
    MergedWeights(model).merge(adding(deltas))
    for name, delta in deltas.items():
        weight, before = model.get_parameter(f"{name}.weight"), base.get_parameter(f"{name}.weight")
        assert excess(weight.detach(), before.detach(), [(delta.a, delta.b, 1.0)]) <= 1


def test_weights_stay_where_they_are(llama: Tree) -> None:
    model = chains.load(llama.base)
    places = {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors(model).items()}
    merges = MergedWeights(model)
    merges.merge(adding(random_deltas(model, 0)))
    merges.restore()
    assert {name: (id(tensor), tensor.data_ptr()) for name, tensor in tensors(model).items()} == places


def test_a_merged_model_can_still_be_trained(llama: Tree) -> None:
    model = chains.load(llama.base)
    with torch.inference_mode():
        MergedWeights(model).merge(adding(random_deltas(model, 0)))
    model(tiny.tokens(), labels=tiny.tokens()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_model_made_under_inference_mode_can_be_merged_outside_it() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(3, 4))
    before, merges = chains.state_digest(model), MergedWeights(model)
    merges.merge(adding({"0": random_delta(4, 3, 2, seed=0)}))
    assert chains.state_digest(model) != before
    merges.restore()
    assert chains.state_digest(model) == before


def test_a_layer_midway_that_overflows_leaves_the_base_whole(llama: Tree) -> None:
    model = chains.load(llama.base, torch.float16)
    before, merges, deltas = chains.state_digest(model), MergedWeights(model), random_deltas(model, 0)
    merges.merge(adding(random_deltas(model, 1)))
    broken = sorted(deltas)[3]
    deltas[broken] = LowRank(deltas[broken].a * 1e4, deltas[broken].b * 1e4)
    with pytest.raises(Invalid, match=broken):
        merges.merge(adding(deltas))
    assert chains.state_digest(model) == before


def test_memory_that_runs_out_midway_leaves_the_base_whole(llama: Tree) -> None:
    model = chains.load(llama.base)
    before, merges, deltas = chains.state_digest(model), MergedWeights(model), random_deltas(model, 0)
    name = list(deltas)[4]
    out, inp = deltas[name].shape
    # Views of one number: no machine can hold what multiplying them takes.
    rank = 1 << 50
    deltas[name] = LowRank(torch.zeros(1, 1).half().expand(rank, inp), torch.zeros(1, 1).half().expand(out, rank))
    with pytest.raises(RuntimeError, match=r"memory|allocate|overflow"):
        merges.merge(adding(deltas))
    assert chains.state_digest(model) == before


def test_every_delta_that_does_not_fit_is_named_and_the_base_is_whole(llama: Tree) -> None:
    model = chains.load(llama.base)
    before, merges = chains.state_digest(model), MergedWeights(model)
    merges.merge(adding(random_deltas(model, 0)))
    good = random_delta(32, 32, 2, seed=0)
    deltas = {
        "model.layers.0.self_attn.q_proj": good,
        "model.layers.0.self_attn.k_proj": good,
        "model.layers.9.self_attn.q_proj": good,
        "model.embed_tokens": random_delta(96, 32, 2, seed=0),
    }
    with pytest.raises(Invalid) as caught:
        merges.merge(adding(deltas))
    assert all(name in str(caught.value) for name in list(deltas)[1:])
    assert chains.state_digest(model) == before


def test_a_tied_weight_gets_memory_of_its_own_until_it_is_restored(tmp_path: Path) -> None:
    model = chains.load(tiny.llama(tmp_path / "tied", tie_word_embeddings=True))
    before, delta = chains.state_digest(model), random_delta(96, 32, 2, seed=0)
    head, tokens = model.get_submodule("lm_head"), model.get_submodule("model.embed_tokens")
    shared, values = head.weight, head.weight.detach().clone()
    merges = MergedWeights(model)
    for _ in range(2):
        merges.merge(adding({"lm_head": delta}))
        assert head.weight is not tokens.weight
        assert torch.equal(tokens.weight, values)
        torch.testing.assert_close(head.weight.detach(), values + delta.delta())
        merges.merge(adding({"model.layers.0.self_attn.q_proj": random_delta(32, 32, 2, seed=1)}))
        assert head.weight is tokens.weight is shared
    merges.restore()
    assert chains.state_digest(model) == before
    assert head.weight is tokens.weight is shared


def test_a_weight_that_overlaps_another_gets_memory_of_its_own_too() -> None:
    model, memory = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.zeros(6)
    model[0].weight, model[1].weight = nn.Parameter(memory[:4].view(2, 2)), nn.Parameter(memory[2:].view(2, 2))
    merges = MergedWeights(model)
    merges.merge(adding({"0": random_delta(2, 2, 1, seed=0)}))
    assert model[0].weight.any()
    assert not model[1].weight.any()
    merges.restore()
    assert not memory.any()
    assert model[0].weight.data_ptr() == memory.data_ptr()


def test_a_layer_that_is_one_object_under_two_names_is_refused() -> None:
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"one": layer, "other": layer})
    before = chains.state_digest(model)
    with pytest.raises(Invalid, match="does not fit the model: one; other are one layer"):
        MergedWeights(model).merge(adding({"other": random_delta(2, 2, 1, seed=0)}))
    assert chains.state_digest(model) == before


def test_a_tied_model_that_is_cast_while_it_is_untied_comes_back_cast_throughout(tmp_path: Path) -> None:
    model = chains.load(tiny.llama(tmp_path / "tied", tie_word_embeddings=True))
    head, tokens = model.get_submodule("lm_head"), model.get_submodule("model.embed_tokens")
    shared = head.weight.detach().clone()
    merges, delta = MergedWeights(model), random_delta(96, 32, 2, seed=0)
    merges.merge(adding({"lm_head": delta}) | adding({"model.embed_tokens": delta}, "Embedding"))
    model.half()
    merges.restore()
    assert head.weight is tokens.weight
    assert torch.equal(head.weight.detach(), shared.half())
