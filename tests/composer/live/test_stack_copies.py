"""What is no delta of a layer's weight is stacked as a composed copy in the tensor's place."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from loratree_composer.arithmetic.edits import Add, Replace, Shift
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.program import ChainStep, Program, programs
from loratree_composer.base.sharing import tensors
from loratree_composer.live.stack import Stack, is_stacked
from loratree_registry.errors import Invalid
from tests.composer import chains
from tests.composer.live.test_stack import editing
from tests.composer.reference_sums import adding, random_delta


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
    with pytest.raises(Invalid, match=r"proj\.weight would hold values that are not finite in torch\.float32"):
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


def test_what_is_frozen_or_thawed_while_copies_stand_in_a_model_stays_so() -> None:
    model = nn.Sequential(nn.LayerNorm(3))
    model.requires_grad_(requires_grad=False)
    stack = Stack(model, programs([ChainStep("", 1.0, {"0.weight": (Replace(torch.zeros(3)),)})]))
    model.requires_grad_()
    stack.remove()
    assert all(parameter.requires_grad for parameter in model.parameters())
