"""Edits on a tensor, alone and after other edits, compared with the formula in float64."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from loratree_composer.arithmetic.edits import Add, Edit, Replace, ReplaceRows, Rescale, Shift, joined
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.merge import ROWS, merge_into, merged
from loratree_registry.errors import Invalid
from tests.composer.reference_sums import half_ulp, random_delta

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def exact(weight: Tensor, edits: Sequence[Edit]) -> Tensor:
    """The edits one after the other in float64."""
    result = weight.double()
    for edit in edits:
        match edit:
            case Add(delta):
                result = result + (delta.b.double() @ delta.a.double()).view(result.shape)
            case Rescale(delta, magnitude, dim):
                result = result + (delta.b.double() @ delta.a.double()).view(result.shape)
                norm = result.flatten(1).norm(dim=1 - dim)
                gain = magnitude.double() / norm
                result = result * gain.view([-1 if index == dim else 1 for index in range(result.ndim)])
            case Shift(value):
                result = result + value.double()
            case Replace(value):
                result = value.double()
            case ReplaceRows(rows, value):
                result = result.index_copy(0, rows, value.double())
    return result


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


OUT, IN = 2 * ROWS + 5, 24
ADD, DEEPER = (Add(random_delta(OUT, IN, rank, seed=rank)) for rank in (4, 7))
DORA = Rescale(random_delta(OUT, IN, 3, seed=1), random(OUT, seed=2).abs() + 0.5)
DORA_COLUMNS = Rescale(random_delta(OUT, IN, 3, seed=3), random(IN, seed=4).abs() + 20, dim=1)
WHOLE = Replace(random(OUT, IN, seed=5))
TOKENS = ReplaceRows(torch.tensor([0, ROWS - 1, ROWS, OUT - 1, 7]), random(5, IN, seed=6))
CHAINS: dict[str, list[Edit]] = {
    "a delta": [ADD],
    "two deltas": [ADD, DEEPER],
    "an override": [WHOLE],
    "the deepest override replaces what lay above and deeper deltas add": [
        ADD,
        Replace(ADD.delta.delta()),
        WHOLE,
        DEEPER,
    ],
    "rows, and a deeper delta": [ADD, TOKENS, DEEPER],
    "rows replace an override's": [WHOLE, TOKENS],
    "DoRA": [DORA],
    "DoRA by columns": [DORA_COLUMNS],
    "a delta over DoRA over a delta": [ADD, DORA, DEEPER],
    "DoRA over DoRA of the other way round over rows": [TOKENS, DORA, DORA_COLUMNS],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_of_edits_is_the_formula_in_float64(name: str, dtype: torch.dtype) -> None:
    weight = random(OUT, IN, seed=0).to(dtype)
    expected = exact(weight, CHAINS[name])
    for edits in (CHAINS[name], joined(CHAINS[name])):
        result = merged(weight, edits, name="w")
        assert result.dtype == dtype
        assert ((result.double() - expected).abs() <= half_ulp(result) + 2e-6 * (expected.abs() + 1)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts_get_a_delta_each(dtype: torch.dtype) -> None:
    weight = random(5, 300, 20, seed=0).to(dtype)
    delta = LowRank(random(5, 4, 20, seed=1), random(5, 300, 4, seed=2))
    result, expected = merged(weight, [Add(delta, "Experts")], name="w"), weight.double() + delta.delta().double()
    assert ((result.double() - expected).abs() <= half_ulp(result) + 2e-6 * (expected.abs() + 10)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 3, 1)])
def test_a_convolutions_weight_is_taken_as_a_matrix(kernel: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = random(30, 7, *kernel, seed=0).to(dtype)
    columns = weight[0].numel()
    add = Add(random_delta(30, columns, 4, seed=1), f"Conv{len(kernel)}d")
    dora = Rescale(random_delta(30, columns, 2, seed=2), random(30, seed=3).abs() + 1, kind=add.kind)
    expected = exact(weight, [add, dora])
    result = merged(weight, [add, dora], name="w")
    assert ((result.double() - expected).abs() <= half_ulp(result) + 2e-6 * (expected.abs() + 1)).all()


def test_a_grouped_convolutions_delta_is_no_value_of_its_weight() -> None:
    with pytest.raises(Invalid, match=r"conv\.weight is of a convolution in 2 groups.*stack or flatten"):
        merged(
            torch.zeros(4, 2, 3), [Add(LowRank(torch.zeros(2, 12), torch.zeros(4, 1)), "Conv1d", 2)], name="conv.weight"
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_are_shifted_and_replaced(dtype: torch.dtype) -> None:
    bias, value, shift = random(9, seed=0).to(dtype), random(9, seed=1), random(9, seed=2)
    expected = value.double() + shift.double()
    result = merged(bias, [Shift(shift), Replace(value), Shift(shift)], name="b")
    assert ((result.double() - expected).abs() <= half_ulp(result) + 1e-6).all()


def test_counters_and_masks_are_replaced_as_they_are() -> None:
    assert merged(torch.tensor(3), [Replace(torch.tensor(2**40 + 1))], name="n").item() == 2**40 + 1
    assert merged(torch.tensor([True]), [Replace(torch.tensor([False]))], name="m").tolist() == [False]
    assert merged(torch.tensor(3.0), [Replace(torch.tensor(1.5))], name="s").item() == 1.5


def test_joining_keeps_what_counts() -> None:
    assert [type(edit) for edit in joined([ADD, DEEPER])] == [Add]
    assert [type(edit) for edit in joined([ADD, WHOLE, ADD, DEEPER])] == [Replace, Add]
    assert [type(edit) for edit in joined([ADD, DORA, ADD, DEEPER, TOKENS])] == [Add, Rescale, Add, ReplaceRows]
    assert joined([]) == ()


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (Replace(torch.zeros(3, 5)), r"w has shape \[4, 5\] and the adapter's part is \[3, 5\]"),
        (ReplaceRows(torch.tensor([1]), torch.zeros(1, 4)), r"part is \[1, 4\], expected \[1, 5\]"),
        (Shift(torch.zeros(5)), r"part is \[5\]"),
        (Rescale(random_delta(4, 6, 2, seed=0), torch.ones(4)), r"part is \[4, 6\], expected \[4, 5\]"),
        (Rescale(random_delta(4, 5, 2, seed=0), torch.ones(5)), r"magnitudes are \[5\]"),
        (Add(LowRank(torch.zeros(4, 1, 5), torch.zeros(4, 2, 1))), r"part is \[4, 2, 5\]"),
    ],
)
def test_an_edit_of_another_shape_is_refused(edit: Edit, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        merged(torch.zeros(4, 5), [edit], name="w")


def test_a_value_that_overflows_when_it_is_cast_is_refused() -> None:
    with pytest.raises(Invalid, match=r"norm\.weight would hold values that are not finite"):
        merged(torch.ones(3).half(), [Replace(torch.full((3,), 1e5))], name="norm.weight")
    with pytest.raises(Invalid, match="not finite"):
        merged(torch.ones(3, 3), [Add(LowRank(torch.full((1, 3), 1e30), torch.full((3, 1), 1e30)))], name="w")
    with pytest.raises(Invalid, match="not finite"):
        merged(torch.zeros(3, 3), [Rescale(LowRank(torch.zeros(1, 3), torch.zeros(3, 1)), torch.ones(3))], name="w")


def test_a_sum_from_a_wider_source_is_rounded_once() -> None:
    source, target = random(40, 30, seed=0), torch.empty(40, 30, dtype=torch.bfloat16)
    delta = random_delta(40, 30, 4, seed=1)
    merge_into(target, source, [Add(delta)], name="w")
    assert torch.equal(target, merged(source, [Add(delta)], name="w").bfloat16())
