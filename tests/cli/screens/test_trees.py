"""Drawings of trees: every node is drawn or counted, and lines fit."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from loratree_cli.screens.trees import (
    LINES,
    Branch,
    Shape,
    choose_shape,
    draw_tree,
    grow,
    hidden_counts,
    without_deleted,
)
from loratree_registry.core.paths import LEVELS, Level
from loratree_registry.core.records import Node
from loratree_registry.errors import Unavailable


def node(path: str, level: Level, *, has_children: bool = False, **aliases: int) -> Node:
    return Node(path=path, level=level, head=1, has_children=has_children, aliases=aliases, created_at="")


def tree_of(*counts: int) -> Branch:
    """A tree of `counts[0]` domains with `counts[1]` sub-domains each, and so on."""
    nodes, above = list[Node](), ["tiny"]
    for level, count in zip(LEVELS[1:], counts, strict=False):
        above = [f"{path}/{level[0]}{number:03}" for path in above for number in range(count)]
        nodes += [node(path, level) for path in above]
    return grow(node("tiny", "base"), sorted(nodes, key=lambda node: node.path))


def drawn(tree: Branch, shape: Shape, width: int = 80) -> list[str]:
    return [line.plain for line in draw_tree(tree, shape, width)]


def counted(lines: list[str]) -> Counter[str]:
    """How many nodes of each level the lines draw or count."""
    found: Counter[str] = Counter()
    for line in lines:
        own, _, hidden = line.partition("… ")
        found.update(word for word in own.split() if word in LEVELS[1:])
        for part in filter(None, hidden.split(", ")):
            number, *_, level = part.split()
            found[level.removesuffix("s")] += int(number.replace(",", ""))
    return found


@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.one_of(st.none(), st.integers(0, 5)), st.booleans())
def test_every_node_is_drawn_or_counted_and_large_trees_are_short(
    counts: list[int], depth: int | None, is_whole: bool
) -> None:
    tree = tree_of(*counts)
    shape = choose_shape([tree], depth, is_whole=is_whole)
    lines = drawn(tree, shape)
    assert counted(lines) == tree.counts
    assert len(lines) == shape.lines(tree)
    if depth is None and not is_whole:
        assert len(lines) <= LINES
    if is_whole and depth is None:
        assert not any("…" in line for line in lines)


def test_of_many_siblings_a_few_are_drawn() -> None:
    tree = tree_of(40, 2)
    assert drawn(tree, Shape(1, is_whole=False))[-1] == "└── … 20 more domains, 40 subdomains"
    assert drawn(tree_of(200), Shape(1, is_whole=False))[-2:] == ["├── d002 domain @1", "└── … 197 more domains"]
    assert len(drawn(tree_of(8), Shape(1, is_whole=False))) == 9


def test_marked_nodes_are_drawn_before_others_alike_and_counted_where_hidden() -> None:
    nodes = [replace(node(f"tiny/d{number:02}", "domain"), marks=["stale"] * (number > 80)) for number in range(100)]
    tree = grow(node("tiny", "base"), nodes)
    assert drawn(tree, Shape(1, is_whole=False))[1:] == [
        *("├── d81 domain @1 stale", "├── d82 domain @1 stale", "├── d83 domain @1 stale"),
        "└── … 97 more domains (16 stale)",
    ]
    assert drawn(tree, Shape(0, is_whole=False)) == ["tiny base @1 … 100 domains (19 stale)"]


def deleted(path: str, level: Level, *, has_children: bool = False) -> Node:
    return replace(node(path, level, has_children=has_children), head=None, marks=["deleted"])


def test_a_branch_of_which_only_tombstones_are_left_is_no_part_of_the_tree() -> None:
    grouping = replace(node("tiny/c", "domain", has_children=True), head=None)
    unused = replace(node("tiny/e", "domain"), head=None)
    nodes = [
        deleted("tiny/a", "domain"),
        *(deleted("tiny/b", "domain", has_children=True), node("tiny/b/alive", "task")),
        *(grouping, deleted("tiny/c/x", "task", has_children=True), deleted("tiny/c/x/y", "user")),
        deleted("tiny/d", "domain", has_children=True),  # of which the list says nothing more
        unused,
    ]
    tree = without_deleted(grow(node("tiny", "base"), nodes))
    lines = ["b domain deleted", "alive task @1", "d domain deleted", "e domain no head"]
    assert [line.lstrip("├└─│ ") for line in drawn(tree, Shape(9, is_whole=True))] == ["tiny base @1", *lines]
    assert tree.counts == Counter(domain=3, task=1, deleted=2)
    alone = without_deleted(grow(deleted("tiny/a", "domain"), []))
    assert drawn(alone, Shape(9, is_whole=True)) == ["tiny/a domain deleted"]


def test_hidden_nodes_are_counted_in_words() -> None:
    assert hidden_counts(Counter(user=1)) == "… 1 user"
    assert hidden_counts(Counter(user=10_000, task=3), " more") == "… 3 more tasks, 10,000 users"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_lines_of_long_names_many_aliases_and_deep_trees_fit(width: int) -> None:
    aliases = {f"a{number}": number for number in range(12)}
    deep = ["/".join(["tiny", *(f"level-{level}" for level in range(count))]) for count in range(1, 24)]
    nodes = [node(path, "subdomain", **aliases) for path in deep]
    nodes += [node("tiny/" + "n" * 128, "domain", **aliases), node("tiny/z", "domain")]
    tree = grow(node("tiny", "base"), nodes)
    lines = drawn(tree, choose_shape([tree], None, is_whole=True), width)
    for line in lines:
        assert cell_len(line) <= width or line.split()[-1] == "n" * 128
    text = " ".join(word for line in lines for word in line.replace("│", " ").split())
    for word in ("level-22", "n" * 128, "(a0=0,", "a9=9)"):
        assert word in text


def test_a_line_that_is_too_short_for_its_node_goes_on_beside_the_guides() -> None:
    aliases = {f"alias-{number}": number for number in range(5)}
    nodes = [node("tiny/a", "domain", **aliases), node("tiny/a/b", "task"), node("tiny/c", "domain", **aliases)]
    tree = grow(node("tiny", "base"), nodes)
    assert drawn(tree, Shape(2, is_whole=True), 44) == [
        "tiny base @1",
        "├── a domain @1 (alias-0=0, alias-1=1,",
        "│   │    alias-2=2, alias-3=3, alias-4=4)",
        "│   └── b task @1",
        "└── c domain @1 (alias-0=0, alias-1=1,",
        "         alias-2=2, alias-3=3, alias-4=4)",
    ]


def test_a_node_whose_parent_is_not_listed_is_the_servers_fault() -> None:
    with pytest.raises(Unavailable, match="check the server"):
        grow(node("tiny", "base"), [node("tiny/a/b", "task")])
