"""Programs that are kept ready: the same sums, in bounded memory."""

import torch
from torch import nn

from loratree_composer.adapters.budget import Budget
from loratree_composer.arithmetic.merge import merged
from loratree_composer.arithmetic.program import Program
from loratree_composer.live.recent_programs import RecentPrograms, RecentStacks, edit_size
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
    recent = RecentPrograms(Budget(4 * 2 * size))  # a quarter of it
    for key in ("a", "b", "a", "b", "c", "a", "c"):
        recent.get(key, lambda: made(0))
    assert recent.get("a", dict) != {}
    assert recent.get("c", dict) != {}
    assert recent.get("b", dict) == {}
    recent.clear()
    assert recent.get("a", dict) == {}


def _linear(out: int = 8, inputs: int = 4) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(inputs, out))


def test_a_stack_is_kept_from_its_second_time_and_is_the_same_function() -> None:
    model, x, calls = _linear(), torch.randn(3, 4), []

    def make() -> dict[str, Program]:
        calls.append(1)
        return made(0)

    recent, found, bare = RecentStacks(), [], model(x)
    for _ in range(4):
        stack = recent.make("a", model, make)
        found.append(model(x))
        assert stack.unreached == []
        stack.remove()
        assert torch.equal(model(x), bare)
    assert len(calls) == 2
    assert all(torch.equal(other, found[0]) for other in found)
    assert not torch.equal(found[0], bare)


def test_a_kept_stack_is_made_again_where_the_layer_was_cast_or_replaced() -> None:
    model, calls = _linear(), []

    def make() -> dict[str, Program]:
        calls.append(1)
        return made(0)

    recent = RecentStacks()
    for _ in range(3):
        recent.make("a", model, make).remove()
    model.double()
    recent.make("a", model, make).remove()
    assert len(calls) == 3
    model[0] = nn.Linear(4, 8, dtype=torch.float64)  # type: ignore[index, operator]
    x = torch.randn(3, 4, dtype=torch.float64)
    bare = model(x)
    recent.make("a", model, make)
    assert len(calls) == 4
    assert not torch.equal(model(x), bare)
