import math

import pytest

from loratree_cli.demo.agreement import Agreement
from loratree_cli.demo.ladder import Ladder, Mean, Verdict, mean


def two_levels(above: tuple[float, ...], own: tuple[float, ...]) -> Ladder:
    return Ladder(("base", "+domain"), ("base", "domain"), (((1.0, 1.0), above), ((1.5, 2.0), own)))


def test_a_mean_has_the_standard_error_of_its_sample() -> None:
    # 1, 2, 3, 4: the mean is 5/2, the variance 5/3, the standard error √(5/12)
    assert mean([1, 2, 3, 4]) == Mean(2.5, pytest.approx(math.sqrt(5 / 12)))


def test_a_gain_is_paired_by_document() -> None:
    # The losses vary by whole nats and the differences 0.5, 0.7, 0.6 by a tenth: 0.6 ± 0.1/√3.
    (verdict,) = two_levels((1.5, 2.7, 9.6), (1.0, 2.0, 9.0)).verdicts()
    assert verdict.gain.value == pytest.approx(0.6)
    assert verdict.gain.error == pytest.approx(0.1 / math.sqrt(3))
    assert verdict.helps


def test_a_cell_shows_the_plain_mean_and_its_error() -> None:
    cell = two_levels((1.0, 3.0), (1.0, 1.0)).cell(0, 1)
    assert cell == Mean(2.0, pytest.approx(1.0))


def test_each_level_is_compared_with_the_row_above_in_its_own_column() -> None:
    def at(row: int, column: int) -> tuple[float, ...]:
        return (10.0 * row + column, 10.0 * row + column + 1)

    names = ("base", "domain", "sub-domain")
    ladder = Ladder(names, names, tuple(tuple(at(row, column) for column in range(3)) for row in range(3)))
    assert [(v.row, v.above, v.text, v.gain.value) for v in ladder.verdicts()] == [
        ("domain", "base", "domain", -10.0),
        ("sub-domain", "domain", "sub-domain", -10.0),
    ]


@pytest.mark.parametrize(
    ("value", "error", "helps"),
    [(0.31, 0.1, True), (0.3, 0.1, False), (0.29, 0.1, False), (-1.0, 0.1, False), (0.0, 0.0, False), (0.1, 0.0, True)],
)
def test_a_level_helps_when_it_gains_more_than_three_standard_errors(value: float, error: float, helps: bool) -> None:
    verdict = Verdict("+task", "+sub-domain", "task", Mean(value, error))
    assert verdict.helps is helps
    assert ("does not help" in verdict.sentence()) is not helps


def test_nothing_is_gained_where_a_loss_is_not_a_number() -> None:
    (verdict,) = two_levels((1.0, 2.0), (0.5, math.nan)).verdicts()
    assert not verdict.helps
    assert "does not help" in verdict.sentence()


def test_a_level_that_does_not_help_is_said_so_in_plain_words() -> None:
    worse = Verdict("+task", "+sub-domain", "task", Mean(-0.25, 0.05))
    assert worse.sentence() == (
        "+task does not help: on task text it is worse than +sub-domain by 0.250 ± 0.050 nats a byte, "
        "and 3 standard errors are needed"
    )


def test_a_level_that_helps_says_by_how_much() -> None:
    better = Verdict("+task", "+sub-domain", "task", Mean(0.25, 0.05))
    assert better.sentence() == "+task beats +sub-domain on task text by 0.250 ± 0.050 nats a byte, 5 standard errors"


def test_what_the_levels_cost_on_the_bases_own_text_is_said() -> None:
    ladder = two_levels((1.0, 3.0), (1.0, 1.0))
    assert ladder.cost() == "from base to +domain, base text gets worse: 1.000 → 1.750"


@pytest.mark.parametrize(
    ("difference", "bare", "holds", "words"),
    [
        (1e-5, 0.5, True, "all forms agree"),
        (1.1e-5, 0.5, False, "the forms do not agree: a and c"),
        (math.nan, 0.5, False, "the forms do not agree: a and c"),
        (1e-7, 1e-6, False, "proves nothing"),
        (1e-7, math.nan, False, "proves nothing"),
    ],
)
def test_forms_agree_within_a_bound_that_the_bare_base_misses(
    difference: float, bare: float, holds: bool, words: str
) -> None:
    agreement = Agreement((("a", "b", 1e-6), ("a", "c", difference), ("b", "c", 1e-6)), bare)
    assert agreement.holds is holds
    assert words in agreement.sentence()
