"""The names of new nodes that look like typing errors of others, and names that are only counted."""

import pytest

from loratree_registry.core.registry import Registry
from loratree_registry.errors import Conflict, Invalid
from loratree_registry.workspace.places import find_place


@pytest.mark.parametrize(
    ("there", "new"),
    [
        *(("medicine", "medicin"), ("medicine", "medicinee"), ("medicine", "nedicine"), ("medicine", "medcine")),
        *(("medicine", "meidcine"), ("contracts", "contract"), ("case-law", "caselaw"), ("case-law", "case_law")),
    ],
)
def test_a_name_that_is_one_letter_away_is_asked_about(registry: Registry, there: str, new: str) -> None:
    registry.create_node(f"tiny/{there}")
    with pytest.raises(
        Invalid, match=f"tiny/{new} is new, and there is tiny/{there}: publish there, or say --new-path"
    ):
        find_place(registry, f"tiny/{new}/ann", None)
    made = {f"tiny/{new}": "domain", f"tiny/{new}/ann": "subdomain"}
    assert find_place(registry, f"tiny/{new}/ann", None, new_path=True) == made
    assert find_place(registry, f"tiny/{new}", None) == {f"tiny/{new}": "domain"}  # the leaf itself is not asked about


@pytest.mark.parametrize(
    ("there", "new"),
    [
        *(("team-a", "team-b"), ("v1", "v2"), ("year2024", "year2025"), ("law-1", "law-11"), ("usa", "uk")),
        *(("law", "lab"), ("medicine", "medical"), ("medicine", "biomedicine"), ("a-team", "b-team")),
    ],
)
def test_names_that_are_counted_short_or_others_are_not(registry: Registry, there: str, new: str) -> None:
    registry.create_node(f"tiny/{there}")
    assert list(find_place(registry, f"tiny/{new}/ann", "user")) == [f"tiny/{new}", f"tiny/{new}/ann"]


def test_levels_are_checked_before_anything_is_made(registry: Registry) -> None:
    registry.create_node("tiny/law/ann", level="user")
    assert find_place(registry, "tiny/law/ann", None) == find_place(registry, "tiny/law/ann", "user") == {}
    with pytest.raises(Conflict, match="tiny/law/ann is a user and cannot become a task: levels never change"):
        find_place(registry, "tiny/law/ann", "task")
    with pytest.raises(Invalid, match="a user is the lowest level"):
        find_place(registry, "tiny/law/ann/below", None)
    with pytest.raises(Invalid, match=r"tiny/law/bob is new and would be a subdomain, .* of the level user"):
        find_place(registry, "tiny/law/bob", None)
    assert find_place(registry, "tiny/law/bob", "task") == {"tiny/law/bob": "task"}
    assert find_place(registry, "tiny/law/tax/bob", None) == {"tiny/law/tax": "subdomain", "tiny/law/tax/bob": "task"}
    registry.create_node("tiny/law/tax", level="subdomain")
    assert find_place(registry, "tiny/law/bob", None) == {"tiny/law/bob": "subdomain"}  # one of two is not most
    registry.create_node("tiny/law/eve", level="user")
    with pytest.raises(Invalid, match="most nodes beside it are of the level user"):
        find_place(registry, "tiny/law/bob", None)
    assert find_place(registry, "none/law", None) == {}
