import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows
from loratree_composer.arithmetic.program import ChainStep, Program, programs
from loratree_composer.live.stack import Stack, is_stacked
from loratree_registry.errors import Invalid
from tests import tiny
from tests.composer import chains
from tests.composer.conftest import Tree
from tests.composer.reference_sums import adding, random_delta

QUERY = "model.layers.0.self_attn.q_proj"


def one(seed: int = 0) -> dict[str, Program]:
    return adding({QUERY: random_delta(32, 32, 4, seed=seed)})


def editing(**edits: Edit) -> dict[str, Program]:
    """The programs of one level, an edit a tensor; a name's dots are written __."""
    return programs([ChainStep("", 1.0, {name.replace("__", "."): (edit,) for name, edit in edits.items()})])


def test_a_stacked_layer_adds_b_a_x_whatever_its_leading_dimensions() -> None:
    model, delta = nn.Sequential(nn.Linear(3, 4)), random_delta(4, 3, 2, seed=0)
    bare = nn.Linear(3, 4)
    bare.load_state_dict(model[0].state_dict())
    Stack(model, adding({"0": delta}))
    for shape in ((3,), (5, 3), (2, 5, 3), (2, 2, 5, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(model(x), bare(x) + x @ delta.a.T @ delta.b.T)
    torch.testing.assert_close(model[0](input=x), model(x))


def test_removing_leaves_no_trace(llama: Tree) -> None:
    model = chains.load(llama.base)
    before, state = chains.logits(model), chains.state_digest(model)
    stack = Stack(model, one())
    assert is_stacked(model)
    assert not torch.equal(chains.logits(model), before)
    assert chains.state_digest(model) == state
    stack.remove()
    assert torch.equal(chains.logits(model), before)
    assert not is_stacked(model)
    assert all(not layer._forward_hooks and "forward" not in vars(layer) for layer in model.modules())


def test_hooks_of_others_stay(llama: Tree) -> None:
    model, seen = chains.load(llama.base), []
    model.get_submodule(QUERY).register_forward_hook(lambda *_: seen.append(1))
    Stack(model, one()).remove()
    chains.logits(model)
    assert seen == [1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_factors_take_the_layers_dtype(llama: Tree, dtype: torch.dtype) -> None:
    model = chains.load(llama.base, dtype)
    Stack(model, one())
    assert chains.logits(model).dtype == dtype


def test_generation_and_training_run_through_a_stack(llama: Tree) -> None:
    model = chains.load(llama.base)
    with torch.inference_mode():
        Stack(model, one())
        assert model.generate(tiny.tokens(batch=1), max_new_tokens=4, do_sample=False).shape == (1, 21)  # type: ignore[operator]
    model(tiny.tokens(), labels=tiny.tokens()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_stack_under_autocast_computes_in_its_dtype(llama: Tree) -> None:
    model = chains.load(llama.base)
    Stack(model, one())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lower = chains.logits(model)
    assert chains.relative(lower, chains.logits(model)) < 0.05


def test_a_layer_whose_forward_is_never_called_is_told() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.called, self.read = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return linear(self.called(x), self.read.weight)

    model = Functional()
    stack = Stack(model, adding({name: random_delta(3, 3, 1, seed=0) for name in ("called", "read")}))
    assert stack.unreached == ["called", "read"]
    model(torch.ones(3))
    assert stack.unreached == ["read"]


def test_a_delta_that_does_not_fit_leaves_no_hook(llama: Tree) -> None:
    model = chains.load(llama.base)
    with pytest.raises(Invalid, match="k_proj"):
        Stack(model, one() | adding({"model.layers.0.self_attn.k_proj": random_delta(32, 32, 4, seed=0)}))
    assert not is_stacked(model)


def test_a_model_that_is_cast_after_it_was_stacked_says_what_to_do(llama: Tree) -> None:
    model = chains.load(llama.base)
    stack = Stack(model, one())
    model.half()
    with pytest.raises(
        Invalid, match=r"q_proj was stacked in torch.float32 on cpu and is now torch.float16.*use\(\) again"
    ):
        chains.logits(model)
    stack.remove()
    Stack(model, one())
    chains.logits(model)


def test_an_edit_of_one_name_leaves_what_is_tied_to_it(llama: Tree) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    ids, x = torch.arange(6), torch.randn(2, 4)
    plain, head = model["embed"](ids).clone(), model["head"](x).clone()
    delta, row = random_delta(6, 4, 2, seed=0), torch.ones(1, 4)
    for name, edit in (("embed", Add(delta, "Embedding")), ("head", Add(delta)), ("head", Replace(delta.delta()))):
        stack = Stack(model, programs([ChainStep("", 1.0, {f"{name}.weight": (edit,)})]))
        assert torch.equal(model["embed"](ids), plain) == (name == "head")
        assert torch.equal(model["head"](x), head) == (name == "embed")
        stack.remove()
        assert model["head"].weight is model["embed"].weight
    stack = Stack(model, editing(embed__weight=ReplaceRows(torch.tensor([5]), row)))
    assert torch.equal(model["embed"](ids), torch.cat([plain[:5], row]))
    assert torch.equal(model["head"](x), head)
    stack.remove()
    stack = Stack(model, editing(head__weight=ReplaceRows(torch.tensor([5]), row)))
    assert torch.equal(model["head"](x)[:, 5], linear(x, row)[:, 0])
    assert torch.equal(model["head"](x)[:, :5], head[:, :5])


def test_a_copied_and_a_pickled_stack_stand_on_their_own() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(5, 3)
    stack = Stack(model, adding({"0": random_delta(4, 3, 2, seed=0)}))
    stacked = model(x)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    stack.remove()
    for other in copies:
        assert is_stacked(other)
        assert torch.equal(other(x), stacked)
        with torch.no_grad():
            other[0].weight.zero_()
            other[0].bias.zero_()
        torch.testing.assert_close(other(x), stacked - model(x))


def test_a_stacked_model_that_is_dropped_leaves_memory_at_once() -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    stack = Stack(model, adding({"0": random_delta(4, 3, 2, seed=0)}))
    weight = weakref.ref(model[0].weight)
    gc.disable()
    try:
        del model, stack
        assert weight() is None
    finally:
        gc.enable()


def test_gradients_reach_the_base_through_every_kind_of_layer() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    reference = copy.deepcopy(model)
    deltas = {"0": random_delta(9, 4, 2, seed=0), "1": random_delta(4, 4, 2, seed=1)}
    Stack(model, adding({"0": deltas["0"]}, "Embedding") | adding({"1": deltas["1"]}))
    ids = torch.randint(0, 9, (5,))
    x = reference[0](ids) + deltas["0"].delta()[ids]
    loss = linear(x, reference[1].weight + deltas["1"].delta(), reference[1].bias).square().sum()
    loss.backward()
    model(ids).square().sum().backward()
    for found, expected in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_a_compiled_module_stays_compiled_however_often_it_is_stacked() -> None:
    model, x, runs = nn.Sequential(nn.Linear(3, 4)), torch.randn(5, 3), []

    def counting(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        def run(*args: object) -> object:
            runs.append(1)
            return graph(*args)

        return run

    compiled = torch.compile(model, backend=counting)
    for seed in range(10):  # Dynamo's own limit is 8
        delta = random_delta(4, 3, 2, seed=seed)
        stack = Stack(model, adding({"0": delta}))
        found = compiled(x)
        stack.remove()
        torch.testing.assert_close(found, model(x) + x @ delta.delta().T)
    assert len(runs) == 10


def test_a_forward_that_others_wrap_after_it_was_stacked_is_the_layers_own_when_it_is_removed(llama: Tree) -> None:
    model = chains.load(llama.base)
    before, stack = chains.logits(model), Stack(model, one())
    layer = model.get_submodule(QUERY)
    inner = layer.forward
    layer.forward = lambda x: inner(x) * 1  # type: ignore[method-assign, assignment]
    assert not torch.equal(chains.logits(model), before)
    stack.remove()
    assert torch.equal(chains.logits(model), before)
    assert not is_stacked(model)
