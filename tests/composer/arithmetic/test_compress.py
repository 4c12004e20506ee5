"""Truncated deltas, compared with torch's own SVD of the whole product in float64."""

import math
from pathlib import Path

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from loratree_composer.arithmetic.compress import Compressed, compressed, truncated
from loratree_composer.arithmetic.lowrank import LowRank, concat
from loratree_composer.flatten.flatten import flattened
from loratree_registry.core.chain import Limit
from loratree_registry.errors import Invalid
from tests.composer import chains
from tests.composer.conftest import Tree
from tests.composer.reference_sums import random_delta
from tests.composer.test_against_peft import saved

# ΔW = [[3, 0, 0], [0, -4, 0]]: singular values 4 and 3.
HAND = LowRank(torch.tensor([[1.0, 0, 0], [0, 2.0, 0]]), torch.tensor([[3.0, 0], [0, -2.0]]))


def exact(delta: LowRank) -> Tensor:
    return delta.b.double() @ delta.a.double()


def size(delta: LowRank) -> float:
    """Σ |bᵢ||aᵢ| over the ranks: what rounding errors are measured by."""
    return float((delta.a.double().norm(dim=-1) * delta.b.double().norm(dim=-2)).sum())


def test_the_largest_singular_values_are_kept_and_shared_by_both_factors() -> None:
    cut = truncated(HAND, Limit(rank=1))
    assert cut.delta.a.tolist() == [[0, 2, 0]]
    assert cut.delta.b.tolist() == [[0], [-2]]
    assert cut.singular_values.tolist() == pytest.approx([4, 3])
    assert (cut.rank_before, cut.norm) == (2, pytest.approx(5))
    assert cut.energy == pytest.approx(16 / 25, abs=1e-15)


@pytest.mark.parametrize(("energy", "rank"), [(1e-9, 1), (0.5, 1), (0.6399, 1), (0.6401, 2), (1.0, 2)])
def test_an_energy_takes_the_least_rank_that_keeps_it(energy: float, rank: int) -> None:
    cut = truncated(HAND, Limit(energy=energy))
    assert cut.delta.rank == rank
    assert cut.energy >= energy


@pytest.mark.parametrize("limit", [Limit(rank=2), Limit(rank=10**9), Limit(energy=1), Limit(energy=0.99)])
def test_a_delta_that_is_within_the_limit_comes_back_bit_for_bit(limit: Limit) -> None:
    cut = truncated(HAND, limit)
    assert cut.delta is HAND
    assert cut.energy == 1


@st.composite
def deltas(draw: st.DrawFn) -> LowRank:
    """Wide, tall and square, more ranks than rows, dependent ranks, zeros, and lengths that differ a million times."""
    out, inp, rank = draw(st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(1, 16)))
    delta = random_delta(out, inp, rank, seed=draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    a, b = delta.a.to(dtype), delta.b.to(dtype)
    for _ in range(draw(st.integers(0, 3))):
        one, other = draw(st.tuples(st.integers(0, rank - 1), st.integers(0, rank - 1)))
        factor = draw(st.sampled_from([-1.0, 0.0, 1.0, 1e-6, 1e6]))
        match draw(st.sampled_from(["same a", "same b", "rescaled", "shrunk"])):
            case "same a":
                a[one] = a[other] * factor
            case "same b":
                b[:, one] = b[:, other] * factor
            case "rescaled" if factor:
                a[one], b[:, one] = a[one] * factor, b[:, one] / factor
            case _:
                b[:, one] = b[:, one] * factor
    return LowRank(a, b)


limits = st.builds(lambda rank: Limit(rank=rank), st.integers(1, 20)) | st.builds(
    lambda energy: Limit(energy=energy), st.floats(0.01, 1)
)


@given(deltas(), limits)
def test_nothing_of_that_rank_is_nearer(delta: LowRank, limit: Limit) -> None:
    a, b = delta.a.clone(), delta.b.clone()
    cut = truncated(delta, limit)
    values = torch.linalg.svdvals(exact(delta))
    error = exact(delta) - exact(cut.delta)
    assert float(error.norm()) <= float(values[cut.delta.rank :].norm()) + 3e-7 * size(delta)
    assert (cut.delta.a.dtype, cut.delta.b.dtype, cut.delta.shape) == (a.dtype, b.dtype, (len(b), a.shape[1]))
    assert torch.equal(delta.a, a)
    assert torch.equal(delta.b, b)


@given(deltas(), limits)
def test_what_is_reported_is_what_float64_says(delta: LowRank, limit: Limit) -> None:
    cut = truncated(delta, limit)
    values = torch.linalg.svdvals(exact(delta))
    padded = torch.zeros_like(cut.singular_values)
    padded[: len(values)] = values[: delta.rank]
    torch.testing.assert_close(cut.singular_values, padded, rtol=0, atol=3e-7 * size(delta))
    squares, total = values.square(), values.square().sum()
    truth = float(squares[: cut.delta.rank].sum())
    assert cut.energy * float(total) == pytest.approx(truth, abs=1e-10 * size(delta) ** 2)
    assert 0 <= cut.energy <= 1
    if limit.rank is not None:
        assert cut.delta.rank <= limit.rank
    elif limit.energy is not None and cut.delta.rank > 1:
        assert float(squares[: cut.delta.rank - 1].sum()) <= limit.energy * float(total) + 1e-10 * size(delta) ** 2
        assert cut.energy >= limit.energy - 1e-15


@pytest.mark.parametrize("limit", [Limit(rank=4), Limit(energy=1)])
def test_ranks_that_carry_nothing_go_first(limit: Limit) -> None:
    three = random_delta(30, 40, 3, seed=0)
    cut = truncated(concat([three, three, LowRank(three.a, 0.5 * three.b)]), limit)
    assert (cut.rank_before, cut.delta.rank, cut.energy) == (9, 3, 1)
    torch.testing.assert_close(cut.delta.delta(), 2.5 * three.delta())


@pytest.mark.parametrize("limit", [Limit(rank=2), Limit(energy=0.5)])
def test_levels_that_cancel_leave_a_zero_of_rank_one(limit: Limit) -> None:
    delta = random_delta(30, 40, 4, seed=0)
    cut = truncated(concat([delta, LowRank(delta.a, -delta.b)]), limit)
    assert (cut.delta.rank, cut.energy, cut.norm) == (1, 1, 0)
    assert not cut.delta.a.any()
    assert not cut.delta.b.any()


@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-7])
def test_rows_of_a_that_are_nearly_the_same_lose_nothing(apart: float) -> None:
    # b's first two columns are opposite, so that ΔW is the difference of the rows, plus a third rank as large.
    row, other = random_delta(1, 40, 2, seed=0).a.double()
    columns = random_delta(30, 1, 2, seed=1).b.double()
    a = torch.stack([row, row + apart * other, apart * other.flip(0)])
    delta = LowRank(a, torch.cat([columns[:, :1], -columns[:, :1], columns[:, 1:]], 1))
    cut = truncated(delta, Limit(rank=1))
    values = torch.linalg.svdvals(exact(delta))
    assert float((exact(delta) - exact(cut.delta)).norm()) <= float(values[1]) + 1e-8 * size(delta)


def test_signs_are_fixed() -> None:
    for seed in range(8):
        delta = random_delta(20, 30, 6, seed=seed)
        coefficients = torch.linalg.lstsq(delta.a.T, truncated(delta, Limit(rank=5)).delta.a.T).solution
        farthest = coefficients.gather(0, coefficients.abs().argmax(0, keepdim=True))
        assert (farthest > 0).all()


def test_an_expert_without_a_delta_takes_no_rank_from_the_others() -> None:
    part = random_delta(5, 7, 4, seed=0)
    delta = LowRank(torch.stack([part.a, part.a]), torch.stack([part.b, torch.zeros_like(part.b)]))
    cut = truncated(delta, Limit(rank=3))
    assert cut.delta.rank == 3
    torch.testing.assert_close(cut.delta.delta()[0], truncated(part, Limit(rank=3)).delta.delta())
    assert not cut.delta.delta()[1].any()


def test_experts_share_a_rank_and_each_is_cut_to_its_own_best() -> None:
    parts = [random_delta(5, 7, 4, seed=seed) for seed in range(3)]
    delta = LowRank(torch.stack([part.a for part in parts]), torch.stack([part.b for part in parts]))
    cut = truncated(delta, Limit(rank=2))
    alone = [truncated(part, Limit(rank=2)) for part in parts]
    assert cut.delta.shape == (3, 5, 7)
    torch.testing.assert_close(cut.delta.delta(), torch.stack([part.delta.delta() for part in alone]))
    whole = sum(part.norm**2 for part in alone)
    assert cut.energy == pytest.approx(sum(part.energy * part.norm**2 for part in alone) / whole)
    assert truncated(delta, Limit(energy=cut.energy - 1e-12)).delta.rank == 2
    assert truncated(delta, Limit(energy=cut.energy + 1e-12)).delta.rank == 3


def test_the_whole_matrix_is_never_made() -> None:
    delta = LowRank(torch.ones(2, 300_000), torch.ones(300_000, 2))  # ΔW would take 360 GB
    assert truncated(delta, Limit(rank=1)).norm == pytest.approx(600_000)


SIZES = [(1e200, 1.0), (1e-200, 1e-100), (1e-200, 1e-200), (1e150, 1e150), (1e300, 1e-300), (5e-324, 1e300)]


@pytest.mark.parametrize(("of_a", "of_b"), SIZES)
def test_float64_factors_of_any_size_are_cut_as_those_near_one(of_a: float, of_b: float) -> None:
    # Powers of two, so that only the sizes differ, times ±1, which even the least subnormal number can represent.
    of_a, of_b = (2.0 ** math.frexp(size)[1] / 2 for size in (of_a, of_b))
    signs = random_delta(20, 30, 6, seed=0)
    a, b = signs.a.sign().double(), signs.b.sign().double()
    near, far = (truncated(delta, Limit(rank=3)) for delta in (LowRank(a, b), LowRank(a * of_a, b * of_b)))
    assert (far.delta.rank, far.energy) == (3, pytest.approx(near.energy))
    assert 0.5 < near.energy < 1
    assert far.norm == pytest.approx(near.norm * of_a * of_b, rel=1e-12)
    size = math.frexp(of_a)[1] + math.frexp(of_b)[1] - 2
    actual = near_one(far.delta.b, -(size // 2)) @ near_one(far.delta.a, -(size - size // 2))
    torch.testing.assert_close(actual, near.delta.delta())


def near_one(values: Tensor, exponent: int) -> Tensor:
    return torch.tensor([[math.ldexp(value, exponent) for value in row] for row in values.tolist()], dtype=values.dtype)


def test_each_rank_and_each_expert_may_be_of_another_size() -> None:
    delta = random_delta(20, 30, 6, seed=0)
    factors = torch.tensor([1e200, 1e-200, 1.0, 1e-100, 1e300, 1e-300], dtype=torch.float64)
    spread = LowRank(delta.a.double() * factors.unsqueeze(-1), delta.b.double() / factors)
    plain = truncated(delta, Limit(rank=3))
    torch.testing.assert_close(truncated(spread, Limit(rank=3)).delta.delta(), plain.delta.delta().double())
    small = LowRank(delta.a.double() * 1e-150, delta.b.double() * 1e-100)
    experts = LowRank(torch.stack([spread.a, small.a, spread.a * 0]), torch.stack([spread.b, small.b, spread.b]))
    cut = truncated(experts, Limit(rank=3))
    torch.testing.assert_close(cut.delta.delta()[0], plain.delta.delta().double())
    torch.testing.assert_close(cut.delta.delta()[1] * 1e250, plain.delta.delta().double())
    assert not cut.delta.delta()[2].any()
    assert cut.energy == pytest.approx(plain.energy)


def test_a_delta_whose_norm_float64_cannot_hold_is_refused() -> None:
    with pytest.raises(Invalid, match="large hold values that are not finite, or have a product that is not"):
        compressed({"large": LowRank(HAND.a.double() * 1e200, HAND.b.double() * 1e200), "one": HAND}, Limit(rank=1))


def test_every_module_that_is_not_finite_is_named() -> None:
    infinite = LowRank(HAND.a, HAND.b * torch.inf)
    with pytest.raises(Invalid, match="one; two hold values that are not finite"):
        compressed({"two": infinite, "one": LowRank(HAND.a * torch.nan, HAND.b), "three": HAND}, Limit(rank=1))


@pytest.mark.parametrize("limit", [Limit(rank=5), Limit(energy=0.9)])
def test_peft_loads_the_truncated_adapter_and_adds_the_truncated_delta(
    tree: Tree, limit: Limit, tmp_path: Path
) -> None:
    chain = [(chains.read(directory, tree.manifest), 1.0) for directory in tree.chain]
    cut = compressed(chains.summed(chain), limit)
    flat = flattened(chain, tree.manifest, base_model="base", limit=limit)
    assert flat.config["r"] == max(module.delta.rank for module in cut.values()) < sum((8, 6, 7, 2))
    reported = {kept.name: (kept.rank_before, kept.rank, pytest.approx(kept.energy)) for kept in flat.kept}
    assert reported == {name: (module.rank_before, module.delta.rank, module.energy) for name, module in cut.items()}
    model = peft.PeftModel.from_pretrained(chains.load(tree.base), saved(flat, tmp_path / "flat"))
    for name, module in cut.items():
        actual = model.base_model.model.get_submodule(name).get_delta_weight("default")
        actual = actual.T if "gpt2" in str(tree.base) else actual
        torch.testing.assert_close(actual, module.delta.delta(), rtol=0, atol=1e-6)


def test_the_error_is_that_of_pefts_svd(llama: Tree) -> None:
    model = peft.PeftModel.from_pretrained(chains.load(llama.base), llama.chain[0], "first")
    model.load_adapter(llama.chain[2], "second")
    model.add_weighted_adapter(["first", "second"], [1.0, 0.5], "both", combination_type="svd", svd_rank=6)
    chain = [(chains.read(llama.chain[0], llama.manifest), 1.0), (chains.read(llama.chain[2], llama.manifest), 0.5)]
    deltas = chains.summed(chain)
    assert len(deltas) == 14
    for name, ours in compressed(deltas, Limit(rank=6)).items():
        layer = model.base_model.model.get_submodule(name)
        theirs = layer.lora_B["both"].weight.double() @ layer.lora_A["both"].weight.double()
        errors = [float((exact(deltas[name]) - actual).norm()) for actual in (exact(ours.delta), theirs.detach())]
        assert errors[0] == pytest.approx(errors[1], rel=1e-4)
        assert_energy(ours, errors[0])


def assert_energy(cut: Compressed, error: float) -> None:
    assert 1 - cut.energy == pytest.approx((error / cut.norm) ** 2, rel=1e-4)
