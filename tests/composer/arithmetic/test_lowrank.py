import torch

from loratree_composer.arithmetic.lowrank import LowRank, concat

A = torch.tensor([[1.0, 2.0, 3.0]])  # [1, 3]
B = torch.tensor([[1.0], [10.0]])  # [2, 1]


def test_the_delta_is_b_times_a() -> None:
    assert LowRank(A, B).delta().tolist() == [[1, 2, 3], [10, 20, 30]]
    assert LowRank(A, B).shape == (2, 3)


def test_the_scale_is_folded_into_b_in_float32() -> None:
    folded = LowRank.scaled(A.bfloat16(), B.bfloat16(), 0.1)
    assert folded.a.dtype == folded.b.dtype == torch.float32
    assert torch.equal(folded.b, B * 0.1)


def test_concatenation_is_the_sum_in_the_order_given() -> None:
    second = LowRank(torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    both = concat([LowRank(A, B), second])
    assert both.rank == 3
    assert both.a[0].tolist() == [1, 2, 3]
    assert both.delta().tolist() == [[1, 3, 3], [12, 20, 30]]


def test_a_transposed_delta_is_the_deltas_transpose() -> None:
    assert LowRank(A, B).transposed().delta().tolist() == [[1, 10], [2, 20], [3, 30]]


def test_nothing_changes_its_arguments() -> None:
    a, b = A.clone(), B.clone()
    LowRank.scaled(a, b, 3.0)
    concat([LowRank(a, b), LowRank(a, b)]).b.zero_()
    assert torch.equal(a, A)
    assert torch.equal(b, B)
