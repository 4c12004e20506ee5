"""Programs that are kept ready: the same sums, in bounded memory."""

import torch

from loratree_composer.adapters.budget import Budget
from loratree_composer.arithmetic.merge import merged
from loratree_composer.arithmetic.program import Program
from loratree_composer.live.recent_programs import RecentPrograms, edit_size
from tests.composer.reference_sums import adding, random_delta


def made(seed: int) -> dict[str, Program]:
    return adding({"0": random_delta(8, 4, 2, seed=seed)})


def test_a_ready_program_gives_the_same_bits() -> None:
    weight, program = torch.randn(8, 4), made(0)["0.weight"]
    ready = program.with_cached_edits()
    assert (ready.key, ready.above_key) == (program.key, program.above_key)
    assert torch.equal(merged(weight, ready.edits, name="w"), merged(weight, program.edits, name="w"))
    assert ready.edits[0] is ready.edits[0]


def test_programs_are_kept_ready_from_their_second_time() -> None:
    calls: list[int] = []

    def make() -> dict[str, Program]:
        calls.append(1)
        return made(0)

    recent = RecentPrograms()
    found = [recent.get("a", make)["0.weight"] for _ in range(4)]
    assert len(calls) == 2
    assert [program.cached_edits is None for program in found] == [True, False, False, False]
    assert found[1] is found[2] is found[3]


def test_the_least_recently_used_are_dropped_beyond_the_limit() -> None:
    size = sum(edit_size(edit) for edit in made(0)["0.weight"].edits)
    recent = RecentPrograms(Budget(8 * 2 * size))  # an eighth of it
    for key in ("a", "b", "a", "b", "c", "a", "c"):
        recent.get(key, lambda: made(0))
    assert recent.get("a", dict) != {}
    assert recent.get("c", dict) != {}
    assert recent.get("b", dict) == {}
    recent.clear()
    assert recent.get("a", dict) == {}
