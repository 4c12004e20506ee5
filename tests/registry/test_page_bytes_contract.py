"""A page is bounded in bytes too: the cursor goes on, and following it gives every item once."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from loratree_registry.catalog import aliases, nodes
from loratree_registry.catalog.paging import MAX_BYTES
from loratree_registry.core.records import Page
from loratree_registry.core.registry import MAX_PAGE, Registry
from loratree_registry.errors import Conflict
from tests.registry.material import Adapter, Material, publish

LARGE = 900 * 1024  # bytes of a config; at most a MiB is allowed
COUNT = 20


def pages(read: Callable[..., Page[Any]], *, limit: int) -> list[list[Any]]:
    """Every page of a listing, by its cursor."""
    found, after = [], None
    while True:
        page = read(after=after, limit=limit)
        found.append(page.items)
        if page.next is None:
            return found
        after = page.next


def size(items: list[Any]) -> int:
    return len(json.dumps([asdict(item) for item in items], ensure_ascii=False).encode())


def test_a_page_of_versions_is_bounded_in_bytes(registry: Registry, material: Material) -> None:
    publish(registry, "tiny/a", material.rank4.variant(1), "base")
    for number in range(COUNT):
        config = material.rank4.config | {"notes": f"{number:04}" + "é" * (LARGE // 2)}
        publish(registry, "tiny/a/b", Adapter(config, material.rank4.weights), "tiny/a@1")
    numbers = [*range(COUNT, 0, -1)]
    for read, expected in (
        (lambda **page: registry.versions("tiny/a/b", **page), numbers),
        (lambda **page: registry.dependents("tiny/a@1", **page), numbers[::-1]),
        (lambda **page: registry.holders(material.rank4.file.sha256, **page), numbers[::-1]),
    ):
        found = pages(read, limit=MAX_PAGE)
        assert [version.number for page in found for version in page] == expected
        assert 2 <= len(found) <= 10
        assert all(size(page) <= MAX_BYTES for page in found)
        small = pages(read, limit=2)
        assert [version.number for page in small for version in page] == expected
        assert {len(page) for page in small} == {2}
    assert [len(registry.ancestry(f"tiny/a/b@{number}")) for number in (1, COUNT)] == [2, 2]
    assert registry.version("tiny/a/b@1").config["notes"].endswith("é")


def test_a_page_of_nodes_is_bounded_in_aliases(
    registry: Registry, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_ALIASES", 5)
    for path in ("tiny/a", "tiny/b", "tiny/c", "tiny/d"):
        publish(registry, path, material.rank4, "base")
    registry.create_node("tiny/e")
    for path, count in (("tiny/a", 2), ("tiny/b", 4), ("tiny/c", 7), ("tiny/d", 1)):
        for number in range(count):
            registry.set_alias(path, f"alias-{number}", version=1, expected=None)
    for read in (registry.children, registry.descendants):
        found = pages(lambda read=read, **page: read("tiny", **page), limit=MAX_PAGE)
        assert [node.path for page in found for node in page] == [f"tiny/{name}" for name in "abcde"]
        assert [len(node.aliases) for page in found for node in page] == [2, 4, 7, 1, 0]
        assert all(len(page) == 1 or sum(len(node.aliases) for node in page) <= 5 for page in found)
        assert pages(lambda read=read, **page: read("tiny/e", **page), limit=MAX_PAGE) == [[]]


def test_a_node_has_a_bounded_number_of_aliases(
    registry: Registry, material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "MAX_ALIASES", 3)
    publish(registry, "tiny/a", material.rank4, "base")
    publish(registry, "tiny/a", material.rank8, "base")
    for number in range(3):
        registry.set_alias("tiny/a", f"alias-{number}", version=1, expected=None)
    with pytest.raises(Conflict, match=r"tiny/a has 3 aliases, and no node has more: remove one by `loratree alias rm"):
        registry.set_alias("tiny/a", "fourth", version=1, expected=None)
    registry.set_alias("tiny/a", "alias-0", version=2, expected=1)
    registry.delete_alias("tiny/a", "alias-1", expected=1)
    registry.set_alias("tiny/a", "fourth", version=1, expected=None)
    assert [alias.name for alias in registry.aliases("tiny/a")] == ["alias-0", "alias-2", "fourth"]
