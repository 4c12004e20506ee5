import pytest
import torch

from loratree_composer.arithmetic.edits import Add
from loratree_composer.arithmetic.lowrank import LowRank, concat
from loratree_composer.arithmetic.merge import ROWS, merged
from loratree_registry.errors import Invalid
from tests.composer.reference_sums import excess, provable, random_delta

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_weight(out: int, inp: int, dtype: torch.dtype, *, seed: int) -> torch.Tensor:
    return torch.randn(out, inp, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_merging_adds_the_delta_to_the_weight() -> None:
    delta = LowRank(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [10.0]]))
    assert merged(torch.ones(2, 2), [Add(delta)], name="w").tolist() == [[2, 3], [11, 21]]


def test_chains_as_deep_and_wide_as_people_train_stay_within_the_bound() -> None:
    weight = random_weight(300, 1024, torch.float32, seed=0)
    raw = [random_delta(300, 1024, rank, seed=rank) for rank in (256, 128, 64, 32, 16, 8)]
    result = merged(weight, [Add(concat(raw))], name="w")
    assert excess(result, weight, [(d.a, d.b, 1.0) for d in raw]) <= 1


@pytest.mark.parametrize("shape", [(700, 513), (513, 96), (300, 1024)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_stays_within_the_provable_bound_for_any_signs_and_the_measured_one_for_both(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    for rank in (64, 96, 128, 200, 256):
        delta, weight = random_delta(*shape, rank, seed=rank), random_weight(*shape, dtype, seed=1) / 20
        levels = [(delta.a, delta.b, 1.0)]
        result = merged(weight, [Add(delta)], name="w")
        assert excess(result, weight, levels) <= 1
        assert excess(result, weight, levels, roundings=provable(levels)) <= 1
        levels = [(delta.a.abs(), delta.b.abs(), 1.0)]
        result = merged(weight.abs(), [Add(LowRank(delta.a.abs(), delta.b.abs()))], name="w")
        assert excess(result, weight.abs(), levels, roundings=provable(levels)) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_weight_is_the_float32_sum_rounded_once(dtype: torch.dtype) -> None:
    weight = random_weight(2 * ROWS + 3, 48, dtype, seed=0)
    delta = random_delta(2 * ROWS + 3, 48, 24, seed=1)
    whole = merged(weight.float(), [Add(delta)], name="w")
    assert (merged(weight, [Add(delta)], name="w") == whole.to(dtype)).float().mean() > 0.999


@pytest.mark.parametrize("dtype", DTYPES)
def test_global_precision_and_autocast_do_not_change_a_bit(dtype: torch.dtype) -> None:
    weight, delta = random_weight(768, 768, dtype, seed=0), random_delta(768, 768, 512, seed=1)
    plain = merged(weight, [Add(delta)], name="w")
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(merged(weight, [Add(delta)], name="w"), plain)
        with torch.inference_mode():
            assert torch.equal(merged(weight, [Add(delta)], name="w"), plain)
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_float64_weight_is_summed_in_float64() -> None:
    weight, delta = random_weight(20, 30, torch.float64, seed=0), random_delta(20, 30, 4, seed=1)
    exact = weight + delta.b.double() @ delta.a.double()
    assert (merged(weight, [Add(delta)], name="w") - exact).abs().max() < 1e-14


def test_a_weight_in_another_memory_order_merges_to_the_same_values() -> None:
    weight, delta = random_weight(300, 40, torch.bfloat16, seed=0), random_delta(300, 40, 4, seed=1)
    assert torch.equal(merged(weight.T.contiguous().T, [Add(delta)], name="w"), merged(weight, [Add(delta)], name="w"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_result_that_is_not_finite_is_refused_by_name(value: float) -> None:
    weight, delta = random_weight(4, 3, torch.float16, seed=0), random_delta(4, 3, 2, seed=1)
    delta.b[2, 1] = value
    with pytest.raises(Invalid, match=r"layers\.0\.q_proj\.weight .* not finite"):
        merged(weight, [Add(delta)], name="layers.0.q_proj.weight")


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        (torch.zeros(4, 3, dtype=torch.int8), "floating-point"),
        (torch.zeros(4, 3, device="meta"), "load the whole base"),
        (torch.zeros(3, 4), "another base"),
    ],
)
def test_a_weight_that_cannot_take_the_delta_is_refused(weight: torch.Tensor, sentence: str) -> None:
    with pytest.raises(Invalid, match=sentence):
        merged(weight, [Add(random_delta(4, 3, 2, seed=1))], name="w")
