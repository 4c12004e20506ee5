import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from loratree_composer.edits import Add, Edit, Replace, ReplaceRows, Shift
from loratree_composer.lowrank import LowRank
from loratree_composer.program import Level, Program, programs
from loratree_composer.sharing import tensors
from loratree_composer.stack import Stack, is_stacked
from loratree_registry.errors import Invalid
from tests import tiny
from tests.composer import chains
from tests.composer.arithmetic import adding, random_delta
from tests.composer.conftest import Tree

QUERY = "model.layers.0.self_attn.q_proj"


def one(seed: int = 0) -> dict[str, Program]:
    return adding({QUERY: random_delta(32, 32, 4, seed=seed)})


def editing(**edits: Edit) -> dict[str, Program]:
    """The programs of one level, an edit a tensor; a name's dots are written __."""
    return programs([Level("", 1.0, {name.replace("__", "."): (edit,) for name, edit in edits.items()})])


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


# Copies in place of tensors


class Normed(nn.Module):
    """A layer with a bias, and a norm that keeps buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.norm(self.proj(x))
        assert isinstance(found, torch.Tensor)
        return found


def normed() -> dict[str, Program]:
    return editing(
        proj__weight=Add(random_delta(4, 3, 2, seed=0)),
        proj__bias=Shift(torch.ones(4)),
        norm__weight=Replace(torch.full((4,), 3.0)),
        norm__running_mean=Replace(torch.full((4,), 0.5)),
        norm__running_var=Replace(torch.full((4,), 2.0)),
        norm__num_batches_tracked=Replace(torch.tensor(7)),
    )


def test_biases_norms_and_buffers_are_copies_until_the_very_same_objects_come_back() -> None:
    model = Normed().eval()
    before, state = tensors(model), chains.state_digest(model)
    versions = {name: tensor._version for name, tensor in before.items()}
    x = torch.randn(5, 3)
    stack = Stack(model, normed())
    delta = random_delta(4, 3, 2, seed=0).delta()
    projected = linear(x, before["proj.weight"] + delta, before["proj.bias"] + 1)
    expected = (projected - 0.5) / 2.00001**0.5 * 3 + before["norm.bias"]
    torch.testing.assert_close(model(x), expected)
    assert {name for name, tensor in tensors(model).items() if tensor is not before[name]} == set(normed()) - {
        "proj.weight"
    }
    model.train()(x)  # which counts and averages in the copies
    stack.remove()
    assert all(tensor is before[name] for name, tensor in tensors(model).items())
    assert {name: tensor._version for name, tensor in before.items()} == versions
    assert chains.state_digest(model) == state


def test_a_model_that_is_cast_while_copies_stand_in_it_is_cast_throughout() -> None:
    model = Normed()
    before = tensors(model)
    stack = Stack(model, normed())
    model.double()  # which makes new buffers
    stack.remove()
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert {tensor.dtype for tensor in tensors(model).values()} == {torch.float64, torch.int64}


def test_a_layer_with_a_forward_of_its_own_gets_a_copy_of_its_weight() -> None:
    model, delta = nn.Sequential(nn.Linear(3, 4)), random_delta(4, 3, 2, seed=0)
    theirs, x = model[0].forward, torch.randn(5, 3)
    expected = 2 * (model(x) + x @ delta.delta().T)
    model[0].forward = lambda x: 2 * theirs(x)  # type: ignore[method-assign]
    own, weight = model[0].forward, model[0].weight
    stack = Stack(model, adding({"0": delta}))
    torch.testing.assert_close(model(x), expected)
    stack.remove()
    assert model[0].forward is own
    assert model[0].weight is weight


def test_nothing_is_stacked_where_one_of_many_edits_does_not_fit_or_is_not_finite() -> None:
    model = Normed()
    before, state = tensors(model), chains.state_digest(model)
    wrong = editing(
        proj__bias=Shift(torch.ones(5)),
        norm__weight=Replace(torch.ones(3)),
        other__weight=Add(random_delta(4, 3, 2, seed=0)),
    )
    with pytest.raises(Invalid, match=r"other\.weight is not in the model; .*norm\.weight has.*proj\.bias has"):
        Stack(model, normed() | wrong)
    huge = LowRank(torch.full((1, 3), 1e30), torch.full((4, 1), torch.inf))
    with pytest.raises(Invalid, match=r"proj would be given values that are not finite in torch\.float32"):
        Stack(model, normed() | editing(proj__weight=Add(huge)))
    assert not is_stacked(model)
    assert all(tensor is before[name] for name, tensor in tensors(model).items())
    assert chains.state_digest(model) == state


def test_a_layer_that_is_one_under_two_names_is_refused_rather_than_changed_under_both() -> None:
    layer = nn.Linear(3, 3)
    model = nn.ModuleDict({"one": layer, "other": layer})
    with pytest.raises(Invalid, match="does not fit the model: one; other are one layer"):
        Stack(model, adding({"other": random_delta(3, 3, 1, seed=0)}))


class Interrupting(dict[str, torch.Tensor | None]):
    """A table of tensors during whose first write the user presses Ctrl-C."""

    interrupted = False

    def __setitem__(self, name: str, tensor: torch.Tensor | None) -> None:
        if not self.interrupted:
            self.interrupted = True
            raise KeyboardInterrupt
        super().__setitem__(name, tensor)


@pytest.mark.parametrize("table", ["_parameters", "_buffers"])
def test_a_stack_that_is_interrupted_leaves_the_module_as_it_was(table: str) -> None:
    model = Normed()
    before = tensors(model)
    vars(model.norm)[table] = Interrupting(vars(model.norm)[table])
    with pytest.raises(KeyboardInterrupt):
        Stack(model, normed())
    assert not is_stacked(model)
    assert all(tensor is before[name] for name, tensor in tensors(model).items())
    Stack(model, normed()).remove()
    assert all(tensor is before[name] for name, tensor in tensors(model).items())


# What else holds of a stacked module


def test_an_edit_of_one_name_leaves_what_is_tied_to_it(llama: Tree) -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(6, 4), "head": nn.Linear(4, 6, bias=False)})
    model["head"].weight = model["embed"].weight
    ids, x = torch.arange(6), torch.randn(2, 4)
    plain, head = model["embed"](ids).clone(), model["head"](x).clone()
    delta, row = random_delta(6, 4, 2, seed=0), torch.ones(1, 4)
    for name, edit in (("embed", Add(delta, "Embedding")), ("head", Add(delta)), ("head", Replace(delta.delta()))):
        stack = Stack(model, programs([Level("", 1.0, {f"{name}.weight": (edit,)})]))
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
