"""Normal forms of edits in any order, compared with the formula in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv1d

from loratree_composer.arithmetic.edits import Add, Edit, ReplaceRows, Rescale
from loratree_composer.arithmetic.lowrank import LowRank
from loratree_composer.arithmetic.merge import ROWS
from loratree_composer.arithmetic.normal_form import normal_form
from tests.composer.arithmetic.test_edits import exact, random
from tests.composer.reference_sums import random_delta

OUT, IN = 11, 7
KINDS = st.sampled_from(["add", "rows of outputs", "columns of outputs", "replaced rows"])


def edit(kind: str, seed: int, *, out: int = OUT) -> Edit:
    match kind:
        case "add":
            return Add(random_delta(out, IN, 1 + seed % 4, seed=seed, std=0.5))
        case "rows of outputs":
            return Rescale(random_delta(out, IN, 2, seed=seed, std=0.5), random(out, seed=seed).abs() + 0.5)
        case "columns of outputs":
            return Rescale(random_delta(out, IN, 3, seed=seed, std=0.5), random(IN, seed=seed).abs() + 1, dim=1)
    rows = torch.randperm(out, generator=torch.Generator().manual_seed(seed))[: 1 + seed % 3]
    return ReplaceRows(rows, random(len(rows), IN, seed=seed))


@given(st.lists(st.tuples(KINDS, st.integers(0, 10**6)), max_size=6), st.sampled_from([0, 1]))
def test_any_chain_of_edits_has_one_normal_form(chain: list[tuple[str, int]], dim: int) -> None:
    other = "columns of outputs" if dim == 0 else "rows of outputs"  # one layer counts outputs on one dimension
    edits = [edit(kind, seed) for kind, seed in chain if kind != other]
    weight = random(OUT, IN, seed=0)
    expected = exact(weight, edits)
    actual = normal_form(weight, edits).matrix(weight, slice(0, OUT))
    assert (actual.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", ["rows of outputs", "columns of outputs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_is_of_the_whole_weight_however_many_rows_are_taken_at_once(kind: str, dtype: torch.dtype) -> None:
    height = 2 * ROWS + 5
    weight = random(height, IN, seed=0).to(dtype)
    edits = [edit(name, seed, out=height) for seed, name in enumerate(["add", "replaced rows", kind, "add", kind])]
    expected, form = exact(weight, edits), normal_form(weight, edits)
    actual = torch.cat([form.matrix(weight, slice(start, start + 100)) for start in range(0, height, 100)])
    assert (actual.double() - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert form.gain is not None
    assert form.gain.dtype == torch.float32


def test_deltas_of_a_grouped_convolution_become_one_pair() -> None:
    groups, x = 2, random(3, 4, 9, seed=0)
    factors = [(random(rank, 4, 3, seed=rank), random(6, rank // groups, 1, seed=rank)) for rank in (2, 6, 4)]
    edits = [Add(LowRank(a.reshape(len(a), -1), b.reshape(6, -1)), "Conv1d", groups) for a, b in factors]
    delta = normal_form(torch.zeros(6, 2, 3), edits).delta
    actual = conv1d(conv1d(x, delta.a.view(-1, 4, 3)), delta.b.view(6, -1, 1), groups=groups)
    expected = sum(conv1d(conv1d(x, a), b, groups=groups) for a, b in factors)
    torch.testing.assert_close(actual, expected)


def test_a_weight_and_the_factors_of_an_adapter_are_not_written() -> None:
    weight, edits = random(OUT, IN, seed=0), [edit(kind, 1) for kind in ("add", "rows of outputs", "replaced rows")]
    before = weight.clone(), exact(weight, edits)
    normal_form(weight, edits).matrix(weight, slice(0, OUT))
    assert torch.equal(weight, before[0])
    assert torch.equal(exact(weight, edits), before[1])
