"""Removing empty nodes and bases, and setting a base's source, as every Registry does them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Conflict, Invalid, NotFound
from tests.registry.material import Material, publish

MED, CARDIO = "tiny/medicine", "tiny/medicine/cardiology"


def test_an_empty_node_is_removed_and_the_node_above_tells_it(registry: Registry, material: Material) -> None:
    registry.create_node(CARDIO)
    before = registry.node("tiny")
    with pytest.raises(Conflict, match=f"{MED} is not empty: {CARDIO} is below it, remove that first"):
        registry.remove_node(MED)
    registry.remove_node(CARDIO)
    registry.remove_node(MED)
    with pytest.raises(NotFound):
        registry.node(MED)
    assert not registry.node("tiny").has_children
    assert before.has_children
    [last, *_] = registry.events("tiny").items
    assert (last.path, last.kind, last.detail) == ("tiny", "node-removed", {"removed": MED})
    publish(registry, MED, material.rank4)  # the path is free again
    assert registry.node(MED).head == 1


def test_a_node_with_versions_or_tombstones_stays(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank4)
    with pytest.raises(Conflict, match=f"{MED} is not empty: it has versions, which `loratree show {MED}` lists"):
        registry.remove_node(MED)
    registry.withdraw(f"{MED}@1", reason="wrong")
    with pytest.raises(Conflict, match="is not empty"):
        registry.remove_node(MED)
    registry.delete(f"{MED}@1", reason="wrong")
    with pytest.raises(
        Conflict, match=f"{MED} stays, because its tombstones keep the numbers .* `loratree base rm tiny`"
    ):
        registry.remove_node(MED)
    assert registry.node(MED).head is None


def test_what_is_no_node_is_not_removed(registry: Registry) -> None:
    with pytest.raises(Invalid, match="tiny is a base: remove it by `loratree base rm tiny`"):
        registry.remove_node("tiny")
    for path in ("tiny/unknown", "unknown"):
        with pytest.raises(NotFound):
            registry.remove_node(path)
    with pytest.raises(NotFound):
        registry.remove_base("unknown")
    with pytest.raises(NotFound):
        registry.set_source("unknown", "x")


def test_a_base_goes_with_its_tree_once_no_version_is_left(registry: Registry, material: Material) -> None:
    publish(registry, CARDIO, material.rank4, "base")
    with pytest.raises(Conflict, match="the base tiny cannot be removed: versions depend on it, delete them first"):
        registry.remove_base("tiny")
    registry.delete(f"{CARDIO}@1", reason="a test")
    registry.remove_base("tiny")
    for find in (registry.base, registry.node, registry.base_manifest, registry.base_files):
        with pytest.raises(NotFound):
            find("tiny")  # type: ignore[operator]
    assert registry.bases().items == []


def test_another_base_of_the_same_name_has_its_own_tensors(registry: Registry, material: Material) -> None:
    """A server that has published on the first one must not check against it."""
    publish(registry, MED, material.rank4, "base")
    registry.delete(f"{MED}@1", reason="a test")
    registry.remove_base("tiny")
    parameters = [p for p in material.base.parameters if "layers.0" not in p.name]
    registry.add_base("tiny", BaseManifest(parameters=tuple(parameters), architecture="LlamaForCausalLM"))
    with pytest.raises(Invalid, match="not in the base"):
        publish(registry, MED, material.rank4, "base")


def test_a_quarantined_tombstone_keeps_its_base(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank4)
    registry.quarantine(f"{MED}@1", reason="poisoned")
    registry.delete(f"{MED}@1", reason="poisoned")
    with pytest.raises(Conflict, match="1 deleted version of its tree was quarantined"):
        registry.remove_base("tiny")
    assert registry.base("tiny").name == "tiny"


def test_a_source_is_set_told_and_removed(registry: Registry) -> None:
    assert registry.set_source("tiny", "example/tiny").source == "example/tiny"
    assert registry.set_source("tiny", "example/tiny") == registry.base("tiny")
    assert registry.set_source("tiny", None).source is None
    kinds = [event.kind for event in registry.events("tiny").items]
    assert kinds == ["base-source-set", "base-source-set", "base-added"]  # the same source again is no event
    for wrong in ("two\nlines", "x" * 1001):
        with pytest.raises(Invalid, match="source"):
            registry.set_source("tiny", wrong)


def test_a_base_that_is_removed_while_someone_publishes_has_the_version_or_is_gone(
    registry: Registry, material: Material
) -> None:
    def attempt(act: Callable[[], object]) -> str:
        try:
            act()
        except (Conflict, NotFound) as error:
            return type(error).__name__
        return "done"

    outcomes = set()
    for _ in range(8):
        registry.add_base("tiny", material.base)
        with ThreadPoolExecutor(2) as pool:
            publishing = pool.submit(attempt, lambda: publish(registry, MED, material.rank4, "base"))
            removing = pool.submit(attempt, lambda: registry.remove_base("tiny"))
            outcome = publishing.result(), removing.result()
        outcomes.add(outcome)
        if outcome[1] == "done":
            with pytest.raises(NotFound):
                registry.base("tiny")
        else:
            assert outcome == ("done", "Conflict")
            assert registry.version(f"{MED}@1").number == 1
            registry.delete(f"{MED}@1", reason="a test")
            registry.remove_base("tiny")
    assert not any(first == "done" and second == "done" for first, second in outcomes)
