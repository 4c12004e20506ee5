"""Aliases are linearizable: recorded histories of moves, removals and reads have an order that a register can have."""

import random
import time
from collections.abc import Callable
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from loratree_registry.core.registry import Registry
from loratree_registry.errors import Conflict
from tests.registry.linearizability import Operation, linearizable
from tests.registry.many import at_once
from tests.registry.material import Material, publish

VERSIONS = 3
CLIENTS = 6
STEPS = 25
ABSENT = 0


def test_every_history_of_an_alias_that_many_move_remove_and_read_is_linearizable(
    registries: list[Registry], node: str, material: Material, record_property: Callable[[str, object], None]
) -> None:
    for number in range(VERSIONS):
        publish(registries[0], node, material.rank2.variant(number))

    def work(registry: Registry, seed: int) -> list[Operation]:
        chance, known, history = random.Random(seed), ABSENT, []
        for _ in range(STEPS):
            began = time.monotonic_ns()
            found, left = step(registry, node, chance, known)
            history.append(Operation(began, time.monotonic_ns(), found, left))
            known = left
        return history

    history = [operation for one in at_once(registries, work, many=CLIENTS) for operation in one]
    moves = sum(operation.found != operation.left for operation in history)
    record_property("measured", f"alias history: {len(history)} operations, {moves} moves, all in one order")
    assert moves > CLIENTS
    assert linearizable(history, start=ABSENT)


def step(registry: Registry, node: str, chance: random.Random, known: int) -> tuple[int, int]:
    """Reads the alias, moves it or removes it, from where this client saw it last; what it found and left."""
    act, version = chance.choice(("read", "move", "move", "remove")), chance.randint(1, VERSIONS)
    if act == "read" or (act == "remove" and known == ABSENT):
        found = registry.node(node).aliases.get("stable", ABSENT)
        return found, found
    try:
        if act == "remove":
            registry.delete_alias(node, "stable", expected=known)
            return known, ABSENT
        registry.set_alias(node, "stable", version=version, expected=known or None)
    except Conflict as error:
        return _refused(error, known)
    return known, version


def _refused(conflict: Conflict, expected: int) -> tuple[int, int]:
    assert conflict.current is not None
    assert conflict.current != expected
    return conflict.current, conflict.current


def test_a_read_of_what_was_overwritten_before_it_began_is_noticed() -> None:
    moves = [Operation(0, 1, 0, 1), Operation(2, 3, 1, 2)]
    assert linearizable([*moves, Operation(4, 5, 2, 2)], start=0)
    assert not linearizable([*moves, Operation(4, 5, 1, 1)], start=0)
    assert linearizable([*moves, Operation(2, 5, 1, 1)], start=0)


def test_two_moves_from_one_place_are_noticed() -> None:
    assert not linearizable([Operation(0, 9, 0, 1), Operation(0, 9, 0, 2)], start=0)
    assert linearizable([Operation(0, 9, 0, 1), Operation(0, 9, 1, 2)], start=0)


def test_reads_that_two_clients_see_in_different_orders_are_noticed() -> None:
    moves = [Operation(0, 9, 0, 1), Operation(0, 9, 1, 0)]
    assert linearizable([*moves, Operation(1, 2, 1, 1), Operation(3, 4, 0, 0)], start=0)
    assert not linearizable([*moves, Operation(1, 2, 1, 1), Operation(3, 4, 0, 0), Operation(5, 6, 1, 1)], start=0)


OPERATIONS = st.builds(
    lambda began, length, found, left: Operation(began, began + length, found, left),
    *(st.integers(0, bound) for bound in (6, 4, 1, 1)),
)


@given(st.lists(OPERATIONS, max_size=5))
def test_the_search_finds_an_order_exactly_where_trying_all_of_them_does(history: list[Operation]) -> None:
    def possible(order: tuple[Operation, ...]) -> bool:
        state = 0
        for place, operation in enumerate(order):
            late = any(operation.began > later.ended for later in order[place + 1 :])
            if late or operation.found != state:
                return False
            state = operation.left
        return True

    assert linearizable(history, start=0) == any(map(possible, permutations(history)))
