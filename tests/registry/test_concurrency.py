"""Many at once: threads of one process, and clients of several servers over one database."""

import random
import time
from collections import Counter
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import text

from loratree_registry.core.registry import Registry
from loratree_registry.database.engine import LOCK_TIMEOUT_S, open_engine, writing
from loratree_registry.errors import Conflict, Unavailable
from tests.registry.many import at_once, one_process
from tests.registry.material import Material, publish

MANY = 32
_CONTENTS = count(1000)


def test_thirty_two_publishers_on_one_new_node_get_the_numbers_from_1_to_32(
    registries: list[Registry], node: str, material: Material
) -> None:
    published = at_once(registries, lambda registry, n: publish(registry, node, material.rank4.variant(n)), many=MANY)
    assert sorted(one.version.number for one in published) == list(range(1, MANY + 1))
    assert all(one.created for one in published)
    held = registries[0].versions(node).items
    assert [version.number for version in held] == list(range(MANY, 0, -1))
    assert {version.digest for version in held} == {one.version.digest for one in published}
    assert registries[0].node(node).head == MANY


def test_identical_content_from_thirty_two_at_once_is_one_version_and_one_blob(
    registries: list[Registry], node: str, place: tuple[Path, str], material: Material
) -> None:
    adapter = material.rank4.variant(next(_CONTENTS))
    published = at_once(registries, lambda registry, _: publish(registry, node, adapter), many=MANY)
    assert [one.created for one in published].count(True) == 1
    assert {(one.version.number, one.version.digest) for one in published} == {(1, published[0].version.digest)}
    assert len(list(place[0].rglob(adapter.file.sha256.removeprefix("sha256:")))) == 1
    assert list((place[0] / "blobs" / "tmp").iterdir()) == []


def test_thirty_two_who_create_the_same_nodes_find_the_same_nodes(registries: list[Registry], node: str) -> None:
    made = at_once(registries, lambda registry, number: registry.create_node(f"{node}/a/b/user{number % 4}"), many=MANY)
    users = [f"{node}/a/b/user{number}" for number in range(4)]
    assert sorted({found.path for found in made}) == users
    base = node.partition("/")[0]
    paths = [found.path for found in registries[0].descendants(base).items]
    assert paths == [node, f"{node}/a", f"{node}/a/b", *users]
    assert sorted(event.path for event in registries[0].events(base).items if event.kind == "node-created") == paths


def test_of_thirty_two_who_move_an_alias_from_one_place_one_wins_and_the_others_hear_where_it_is(
    registries: list[Registry], node: str, material: Material
) -> None:
    publish(registries[0], node, material.rank4)
    publish(registries[0], node, material.rank2)
    registries[0].set_alias(node, "stable", version=1, expected=None)

    def move(registry: Registry, _: int) -> tuple[int | None, str]:
        try:
            registry.set_alias(node, "stable", version=2, expected=1)
        except Conflict as error:
            return error.current, str(error)
        return None, ""

    lost = (2, f"the alias stable of {node} is at version 2, expected at version 1: look again, then decide")
    assert Counter(at_once(registries, move, many=MANY)) == {(None, ""): 1, lost: MANY - 1}


def test_writers_at_every_level_of_one_branch_never_wait_for_each_other_in_a_circle(
    registries: list[Registry], node: str, material: Material
) -> None:
    paths = [node, f"{node}/a", f"{node}/a/b", f"{node}/a/b/c"]
    for path in paths:
        registries[0].create_node(path, level="subdomain")

    def work(registry: Registry, number: int) -> None:
        chance = random.Random(number)
        for step in range(4):
            path = chance.choice(paths)
            if chance.random() < 0.5:
                publish(registry, path, material.rank2.variant(100 * number + step))
            else:
                registry.create_node(f"{path}/n{chance.randrange(9)}", level="user")

    began = time.monotonic()
    at_once(registries, work, many=8)
    assert time.monotonic() - began < LOCK_TIMEOUT_S
    for path in paths:
        numbers = [version.number for version in registries[0].versions(path).items]
        assert numbers == list(range(len(numbers), 0, -1))


def test_who_waits_too_long_for_another_writer_is_told_in_one_sentence(
    place: tuple[Path, str], material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loratree_registry.database.engine.LOCK_TIMEOUT_S", 0.1)
    engine = open_engine(place[1])
    with one_process(*place) as (registry,):
        registry.add_base("tiny", material.base)
        publish(registry, "tiny/medicine", material.rank4)
        with writing(engine) as connection:
            connection.execute(text("UPDATE nodes SET last_number = last_number"))
            with pytest.raises(Unavailable, match="another process is writing, try again"):
                publish(registry, "tiny/medicine", material.rank2)
        assert publish(registry, "tiny/medicine", material.rank2).version.number == 2
    engine.dispose()
