"""What every Registry does: one suite, every implementation (the table of them is in conftest.py)."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from loratree_registry.core.chain import Chain, Step
from loratree_registry.core.digests import content_digest, version_digest
from loratree_registry.core.manifest import BaseManifest, Parameter
from loratree_registry.core.records import Count, Page, Pin, Submission
from loratree_registry.core.registry import MAX_PAGE, Registry
from loratree_registry.errors import Conflict, Invalid, LoratreeError, NotFound
from loratree_registry.peft_format.classify import canonical_config
from tests.registry.material import Adapter, Material, publish, sha256

MED, CARDIO, DIAG, ALICE = (
    "tiny/medicine",
    "tiny/medicine/cardiology",
    "tiny/medicine/cardiology/diagnosis",
    "tiny/medicine/cardiology/diagnosis/alice",
)


def all_pages(listing: Callable[..., Page[Any]], *arguments: Any, limit: int = 2) -> list[Any]:
    """Everything in a listing, read page by page."""
    items, after = [], None
    while True:
        page = listing(*arguments, after=after, limit=limit)
        assert len(page.items) <= limit
        items += page.items
        if page.next is None:
            return items
        after = page.next


# bases


def test_a_base_is_recorded_with_its_manifest_digest_and_root(empty: Registry, material: Material) -> None:
    base = empty.add_base("tiny", material.base, source="made by the tests")
    assert (base.name, base.digest, base.source) == ("tiny", material.base.digest, "made by the tests")
    assert (base.architecture, base.vocabulary_size) == ("LlamaForCausalLM", 96)
    assert base.parameters == sum(len(p.shape) and _product(p.shape) for p in material.base.parameters)
    assert empty.base("tiny") == base
    assert empty.base_manifest("tiny") == material.base
    root = empty.node("tiny")
    assert (root.path, root.level, root.head, root.has_children, root.aliases) == ("tiny", "base", None, False, {})


def test_adding_the_same_base_again_answers_with_the_first_and_records_nothing(
    registry: Registry, material: Material
) -> None:
    first = registry.base("tiny")
    assert registry.add_base("tiny", material.base, source="somewhere else") == first
    assert [event.kind for event in registry.events("tiny").items] == ["base-added"]


def test_the_same_weights_in_another_order_are_the_same_base(registry: Registry, material: Material) -> None:
    shuffled = replace(material.base, parameters=tuple(reversed(material.base.parameters)))
    assert registry.add_base("tiny", shuffled) == registry.base("tiny")


def test_other_weights_under_a_bases_name_are_refused_with_both_digests(registry: Registry, material: Material) -> None:
    with pytest.raises(Conflict, match=r"other weights are another base") as refusal:
        registry.add_base("tiny", material.other_base)
    assert material.base.digest in str(refusal.value)
    assert material.other_base.digest in str(refusal.value)
    assert registry.base("tiny").digest == material.base.digest


@pytest.mark.parametrize("name", ["tiny/x", "Tiny", "", "..", "a" * 129])
def test_a_base_whose_name_is_not_one_segment_is_refused(empty: Registry, material: Material, name: str) -> None:
    with pytest.raises(Invalid):
        empty.add_base(name, material.base)
    assert empty.bases().items == []


@pytest.mark.parametrize(
    "changed",
    [
        {"sha256": "sha256:short"},
        {"sha256": None},
        {"shape": (-1, 4)},
        {"shape": (2**40, 2**40)},
        {"tied_to": "nothing", "sha256": None},
    ],
)
def test_a_manifest_that_no_model_has_is_refused(empty: Registry, material: Material, changed: dict[str, Any]) -> None:
    first, *rest = material.base.parameters
    with pytest.raises(Invalid):
        empty.add_base("tiny", replace(material.base, parameters=(replace(first, **changed), *rest)))
    assert empty.bases().items == []


def test_a_tied_tensor_is_kept_and_does_not_change_the_digest(empty: Registry, material: Material) -> None:
    tied = Parameter(name="tied", shape=(96, 32), dtype="F32", kind="Linear", tied_to="model.embed_tokens.weight")
    manifest = replace(material.base, parameters=(*material.base.parameters, tied))
    assert empty.add_base("tied", manifest).digest == material.base.digest
    assert empty.base_manifest("tied").by_name()["tied"] == tied


def test_bases_are_listed_by_name_page_by_page(empty: Registry, material: Material) -> None:
    names = ["a", "a-b", "a.b", "a0", "a_b", "b"]
    for name in reversed(names):
        empty.add_base(name, material.base)
    assert [base.name for base in all_pages(empty.bases)] == sorted(names)


def test_a_base_that_is_not_there_is_not_found(empty: Registry) -> None:
    for ask in (empty.base, empty.base_manifest, empty.node, empty.resolve):
        with pytest.raises(NotFound, match=r"the base nowhere is not known, as the registry has none: .* add it"):
            ask("nowhere")


def test_what_is_not_there_comes_with_the_most_similar_name_that_is(registry: Registry, material: Material) -> None:
    publish(registry, f"{MED}/cardiology", material.rank4)
    for name in (f"n{number:03}" for number in range(300)):
        registry.create_node(f"{MED}/{name}")
    registry.create_node(f"{MED}/surgery")
    registry.set_alias(f"{MED}/cardiology", "stable", version=1, expected=None)
    asked = {
        "tinny/medicine": "the base tinny is not known (did you mean 'tiny'?)",
        "tiny/medcine/cardiology": "tiny/medcine/cardiology is not known (did you mean tiny/medicine?)",
        f"{MED}/cardiolgy": "is not known (did you mean tiny/medicine/cardiology?)",
        f"{MED}/surgry": "is not known (did you mean tiny/medicine/surgery?)",
        f"{MED}/cardiology@stabel": "has no version stabel (did you mean 'stable'?): it has version 1",
        f"{MED}/cardiology@v1": "has no version v1 (did you mean tiny/medicine/cardiology@1?): it has version 1",
        f"{MED}/cardiology@version-2": "has no version version-2: it has version 1",
        f"{MED}/cardiology@head": "has no version head (did you mean 'latest'?): it has version 1",
        f"{MED}/xyz": f"{MED}/xyz is not known: the nearest node above it is {MED},",
    }
    for ref, said in asked.items():
        with pytest.raises(NotFound) as error:
            registry.resolve(ref)
        assert said in str(error.value)


# nodes and levels


def test_creating_a_node_creates_its_missing_ancestors_as_groupings(registry: Registry) -> None:
    leaf = registry.create_node(ALICE)
    assert (leaf.path, leaf.level, leaf.head) == (ALICE, "user", None)
    levels = [(node.path, node.level, node.head, node.has_children) for node in registry.descendants("tiny").items]
    assert levels == [
        (MED, "domain", None, True),
        (CARDIO, "subdomain", None, True),
        (DIAG, "task", None, True),
        (ALICE, "user", None, False),
    ]


def test_creating_a_node_again_answers_with_it_and_records_nothing(registry: Registry) -> None:
    first = registry.create_node(MED)
    assert registry.create_node(MED) == first == registry.create_node(MED, level="domain")
    assert [event.kind for event in registry.events("tiny").items] == ["node-created", "base-added"]


def test_a_nodes_level_never_changes(registry: Registry) -> None:
    registry.create_node(MED, level="task")
    with pytest.raises(Conflict, match="tiny/medicine is a task and cannot become a domain"):
        registry.create_node(MED, level="domain")


@pytest.mark.parametrize(
    ("path", "level", "expected"),
    [
        ("tiny/a", "user", ["user"]),
        ("tiny/a/b", "task", ["domain", "task"]),
        ("tiny/a/b/c", "subdomain", ["domain", "subdomain", "subdomain"]),
        ("tiny/a/b/c/d", "task", ["domain", "subdomain", "subdomain", "task"]),
        ("tiny/a/b/c/d/e", None, ["domain", "subdomain", "subdomain", "task", "user"]),
        ("tiny/a/b/c/d/e/f", "user", ["domain", "subdomain", "subdomain", "subdomain", "task", "user"]),
    ],
)
def test_groupings_take_the_next_level_down_and_leave_room_for_the_leaf(
    registry: Registry, path: str, level: Any, expected: list[str]
) -> None:
    registry.create_node(path, level=level)
    assert [node.level for node in registry.descendants("tiny").items] == expected


@pytest.mark.parametrize(
    ("above", "path", "level"),
    [
        ("user", "tiny/a/b", None),
        ("user", "tiny/a/b", "user"),
        ("task", "tiny/a/b", "domain"),
        ("task", "tiny/a/b", "task"),
        ("domain", "tiny/a/b", "domain"),
        ("task", "tiny/a/b/c", None),
        ("domain", "tiny/a/b/c", "domain"),
    ],
)
def test_a_child_that_is_not_deeper_than_its_parent_is_refused_and_nothing_is_created(
    registry: Registry, above: Any, path: str, level: Any
) -> None:
    registry.create_node("tiny/a", level=above)
    with pytest.raises(Invalid):
        registry.create_node(path, level=level)
    assert [node.path for node in registry.descendants("tiny").items] == ["tiny/a"]


@pytest.mark.parametrize(
    "path", ["tiny/../x", "tiny/Upper", "tiny//x", "tiny/" + "x" * 129, "/tiny", "tiny/a@b", "tiny/ä"]
)
def test_a_path_outside_the_grammar_is_refused(registry: Registry, path: str) -> None:
    with pytest.raises(Invalid):
        registry.create_node(path)


def test_an_unknown_node_is_not_found_and_the_nearest_one_above_is_named(registry: Registry) -> None:
    registry.create_node(MED)
    asks: list[Callable[[str], object]] = [
        registry.node,
        registry.children,
        registry.descendants,
        registry.count,
        registry.versions,
        registry.version,
        registry.resolve,
        registry.lineage,
        registry.ancestry,
        registry.dependents,
        registry.aliases,
        registry.events,
    ]
    for ask in asks:
        with pytest.raises(
            NotFound, match="tiny/medicine/x/y is not known: the nearest node above it is tiny/medicine"
        ):
            ask("tiny/medicine/x/y")


def test_children_are_the_nodes_directly_below_in_byte_order(registry: Registry) -> None:
    names = ["a", "a-b", "a.b", "a0", "a_b", "b"]
    for name in reversed(names):
        registry.create_node(f"tiny/{name}/below")
    children = all_pages(registry.children, "tiny")
    assert [node.path for node in children] == [f"tiny/{name}" for name in sorted(names)]
    assert all(node.has_children for node in children)


def test_descendants_are_every_node_below_and_no_sibling_whose_name_begins_alike(registry: Registry) -> None:
    below = ["tiny/a/b", "tiny/a/b/c", "tiny/a/c", "tiny/a/c-d"]
    for path in [*below, "tiny/a-b/x", "tiny/a.b/x", "tiny/a0/x", "tiny/a_/x", "tiny/ab/x"]:
        registry.create_node(path)
    assert [node.path for node in all_pages(registry.descendants, "tiny/a")] == below
    assert registry.descendants("tiny/a/c-d").items == []
    assert registry.count("tiny/a") == Count(path="tiny/a", descendants=len(below), more=False)
    assert registry.count("tiny/a/c-d").descendants == 0


@pytest.mark.parametrize("limit", [0, -1, MAX_PAGE + 1])
def test_a_limit_outside_1_to_1000_is_refused_by_every_listing(registry: Registry, limit: int) -> None:
    registry.create_node(MED)
    listings: list[Callable[[], object]] = [
        lambda: registry.bases(limit=limit),
        lambda: registry.children("tiny", limit=limit),
        lambda: registry.descendants("tiny", limit=limit),
        lambda: registry.versions(MED, limit=limit),
        lambda: registry.dependents("tiny", limit=limit),
        lambda: registry.holders("sha256:" + "0" * 64, limit=limit),
        lambda: registry.events("tiny", limit=limit),
    ]
    for listing in listings:
        with pytest.raises(Invalid, match="limit"):
            listing()


@pytest.mark.parametrize("after", ["", "tiny/..", "-1", "1e3", "tiny@stable", "x\x00", "9" * 30])
def test_an_after_that_no_page_gave_is_refused(registry: Registry, after: str) -> None:
    listings: list[Callable[[], object]] = [
        lambda: registry.versions("tiny", after=after),
        lambda: registry.events("tiny", after=after),
        lambda: registry.dependents("tiny", after=after),
        lambda: registry.holders("sha256:" + "0" * 64, after=after),
    ]
    for listing in listings:
        with pytest.raises(Invalid):
            listing()


# publishing


def test_a_published_version_tells_all_about_itself(registry: Registry, material: Material) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    published = publish(registry, MED, material.rank8, "base", note="first try")
    version, adapter = published.version, material.rank8
    config = canonical_config(adapter.config)
    assert published.created
    assert published.warnings == []
    assert (version.path, version.level, version.number) == (MED, "domain", 1)
    assert (version.base, version.base_digest) == ("tiny", material.base.digest)
    assert version.digest == version_digest(
        base_digest=material.base.digest, pin_digest=None, config=config, files=[adapter.file]
    )
    assert version.content == content_digest(config, [adapter.file])
    assert version.pin == Pin(path=None, version=None, digest=None, found="explicit")
    assert (version.summary.ranks, version.summary.scales, version.summary.modules) == ([8], [2.0], 14)
    assert version.summary.rules == {"additive": 14}
    assert (version.files, version.size, version.note) == ([adapter.file], adapter.file.size, "first try")
    assert version.config == config
    assert version.created_at.endswith("Z")
    assert len(version.created_at) == len("2026-01-31T09:30:00.000001Z")
    assert before < datetime.fromisoformat(version.created_at) < datetime.now(UTC) + timedelta(seconds=1)
    assert (
        registry.version(MED) == registry.version(f"{MED}@1") == registry.version(f"{MED}@{version.digest}") == version
    )
    assert registry.node(MED).head == 1


def test_publishing_the_same_again_answers_with_the_same_version_and_records_nothing(
    registry: Registry, material: Material
) -> None:
    first = publish(registry, MED, material.rank8, "base")
    events = registry.events("tiny").items
    again = publish(registry, MED, material.rank8, "base", note="again")
    assert (again.version, again.created) == (first.version, False)
    assert registry.events("tiny").items == events
    assert [version.number for version in registry.versions(MED).items] == [1]


def test_the_same_adapter_trained_on_something_else_is_another_version(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, MED, material.rank8.variant(1))
    first = publish(registry, CARDIO, material.rank4, f"{MED}@1")
    second = publish(registry, CARDIO, material.rank4, f"{MED}@2")
    assert (second.created, second.version.number) == (True, 2)
    assert second.version.content == first.version.content
    assert second.version.digest != first.version.digest


def test_where_nothing_says_the_parent_the_same_adapter_is_still_the_same_version_after_the_parent_moved(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    first = publish(registry, CARDIO, material.rank4)
    publish(registry, MED, material.rank8.variant(1))
    again = publish(registry, CARDIO, material.rank4)
    assert (again.created, again.version) == (False, first.version)


def test_where_nothing_says_the_parent_the_newest_version_of_that_content_answers(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, CARDIO, material.rank4, "base")
    newest = publish(registry, CARDIO, material.rank4, MED)
    assert publish(registry, CARDIO, material.rank4).version == newest.version


def test_the_same_adapter_at_two_nodes_is_two_versions_of_one_digest(registry: Registry, material: Material) -> None:
    here, there = publish(registry, MED, material.rank8), publish(registry, "tiny/law", material.rank8)
    assert here.created
    assert there.created
    assert here.version.digest == there.version.digest


def test_an_assumed_pin_is_the_nearest_ancestors_head(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    head = publish(registry, MED, material.rank8.variant(1)).version
    leaf = publish(registry, DIAG, material.rank4).version  # cardiology between them is a grouping
    assert leaf.pin == Pin(path=MED, version=2, digest=head.digest, found="assumed")


def test_an_assumed_pin_below_no_version_is_the_base(registry: Registry, material: Material) -> None:
    assert publish(registry, DIAG, material.rank4).version.pin == Pin(
        path=None, version=None, digest=None, found="assumed"
    )


@pytest.mark.parametrize("found", ["lockfile", "explicit"])
@pytest.mark.parametrize("selector", ["", "@1", "@stable", "@digest"])
def test_a_pin_may_name_its_parent_by_any_ref(
    registry: Registry, material: Material, found: str, selector: str
) -> None:
    parent = publish(registry, MED, material.rank8).version
    registry.set_alias(MED, "stable", version=1, expected=None)
    ref = MED + selector.replace("digest", parent.digest)
    pin = publish(registry, CARDIO, material.rank4, ref, found=found).version.pin
    assert (pin.path, pin.version, pin.digest, pin.found) == (MED, 1, parent.digest, found)


def test_a_pin_may_name_the_base_under_versioned_ancestors(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    for leaf, parent in [("tiny/medicine/x", "base"), ("tiny/medicine/y", "tiny")]:
        assert publish(registry, leaf, material.rank4, parent).version.pin.path is None


def test_a_pin_may_skip_an_ancestor_that_has_a_version(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, CARDIO, material.rank4)
    leaf = publish(registry, DIAG, material.rank2, MED).version
    assert [link.path for link in registry.resolve(DIAG).chain] == [MED, DIAG]
    assert leaf.pin.path == MED


def test_a_rank_above_the_parents_is_a_warning(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank4)
    published = publish(registry, CARDIO, material.rank8)
    assert published.created
    assert published.warnings == [f"its rank 8 is above the rank 4 of {MED}@1, which it was trained on"]


def test_a_parent_that_is_not_above_the_path_is_refused(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, CARDIO, material.rank4)
    for parent in (CARDIO, "tiny/medicin", f"{CARDIO}/x", f"{DIAG}@1"):
        with pytest.raises(Invalid, match=f"is not above {CARDIO}"):
            publish(registry, CARDIO, material.rank2, parent)


def test_a_parent_of_another_base_is_refused(registry: Registry, material: Material) -> None:
    registry.add_base("other", material.other_base)
    publish(registry, "other/medicine", material.rank8)
    for parent in ("other/medicine", "other"):
        with pytest.raises(Invalid, match=f"is not above {MED}"):
            publish(registry, MED, material.rank4, parent)


def test_a_parent_without_such_a_version_is_not_found(registry: Registry, material: Material) -> None:
    registry.create_node(MED)
    with pytest.raises(NotFound, match="tiny/medicine is a grouping without a version"):
        publish(registry, CARDIO, material.rank4, MED)
    publish(registry, MED, material.rank8)
    with pytest.raises(NotFound, match="tiny/medicine has no version 7: it has version 1 and no alias"):
        publish(registry, CARDIO, material.rank4, f"{MED}@7")


def test_publishing_at_the_bases_own_path_is_refused(registry: Registry, material: Material) -> None:
    with pytest.raises(Invalid, match="tiny is a base, which has no versions"):
        publish(registry, "tiny", material.rank8)


def test_publishing_under_an_unknown_base_is_not_found(registry: Registry, material: Material) -> None:
    with pytest.raises(NotFound, match="the base nowhere is not known"):
        publish(registry, "nowhere/x", material.rank8)


def test_publishing_a_file_that_was_not_uploaded_is_refused(registry: Registry, material: Material) -> None:
    absent = material.rank8.variant(77).file
    with pytest.raises(NotFound, match=absent.sha256):
        publish(registry, MED, material.rank8, change=lambda sent: replace(sent, files=[absent]))
    _assert_untouched(registry)


def _none(sent: Submission) -> Submission:
    return replace(sent, files=[])


def _two(sent: Submission) -> Submission:
    return replace(sent, files=[*sent.files, replace(sent.files[0], name="b")])


def _climbing(sent: Submission) -> Submission:
    return replace(sent, files=[replace(sent.files[0], name="../../x")])


def _shorter(sent: Submission) -> Submission:
    return replace(sent, files=[replace(sent.files[0], size=sent.files[0].size - 1)])


def _no_digest(sent: Submission) -> Submission:
    return replace(sent, files=[replace(sent.files[0], sha256="sha256:../../etc/passwd")])


def _parent_and_assumed(sent: Submission) -> Submission:
    return replace(sent, parent="base", found="assumed")


def _no_parent_and_lockfile(sent: Submission) -> Submission:
    return replace(sent, parent=None, found="lockfile")


def _dora(sent: Submission) -> Submission:
    return replace(sent, config=sent.config | {"use_dora": True})


def _other_rank(sent: Submission) -> Submission:
    return replace(sent, config=sent.config | {"r": 5})


def _long_note(sent: Submission) -> Submission:
    return replace(sent, note="x" * 2001)


def _zero_in_note(sent: Submission) -> Submission:
    return replace(sent, note="a\x00b")


def _two_lines_in_note(sent: Submission) -> Submission:
    return replace(sent, note="a\nb")


def _guessed(sent: Submission) -> Submission:
    return replace(sent, found="guessed")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        _none,
        _two,
        _climbing,
        _shorter,
        _no_digest,
        _parent_and_assumed,
        _no_parent_and_lockfile,
        _dora,
        _other_rank,
        _long_note,
        _zero_in_note,
        _two_lines_in_note,
        _guessed,
    ],
)
def test_a_submission_that_is_wrong_in_itself_is_refused_and_leaves_nothing(
    registry: Registry, material: Material, change: Callable[[Submission], Submission]
) -> None:
    with pytest.raises(Invalid):
        publish(registry, MED, material.rank8, change=change)
    _assert_untouched(registry)


def test_an_adapter_with_a_value_that_is_not_finite_is_refused_and_leaves_nothing(
    registry: Registry, material: Material
) -> None:
    poisoned = Adapter(material.rank8.config, material.rank8.weights[:-4] + b"\x00\x00\xc0\x7f")
    with pytest.raises(Invalid, match="lora_"):
        publish(registry, MED, poisoned)
    _assert_untouched(registry)


def test_an_adapter_of_a_base_with_other_shapes_is_refused_and_leaves_nothing(
    empty: Registry, material: Material
) -> None:
    narrow = tuple(replace(p, shape=tuple(size // 2 for size in p.shape)) for p in material.base.parameters)
    empty.add_base("tiny", replace(material.base, parameters=narrow))
    with pytest.raises(Invalid, match="where this base has"):
        publish(empty, MED, material.rank8)
    _assert_untouched(empty)


def test_a_refusal_inside_the_transaction_leaves_no_grouping_behind(registry: Registry, material: Material) -> None:
    with pytest.raises(NotFound):
        publish(registry, ALICE, material.rank2, f"{MED}@1")
    _assert_untouched(registry)


def test_sixteen_threads_publishing_at_one_new_node_get_sixteen_consecutive_numbers(
    registry: Registry, material: Material
) -> None:
    published = _at_once(16, lambda n: publish(registry, DIAG, material.rank4.variant(n)))
    assert sorted(answer.version.number for answer in published) == list(range(1, 17))
    assert all(answer.created for answer in published)
    assert registry.node(DIAG).head == 16
    kinds = [event.kind for event in registry.events("tiny").items]
    assert (kinds.count("version-published"), kinds.count("node-created")) == (16, 3)


def test_eight_threads_publishing_the_same_adapter_make_one_version(registry: Registry, material: Material) -> None:
    registry.create_node(DIAG)  # else its creation alone puts the threads in a row
    published = _at_once(8, lambda _: publish(registry, DIAG, material.rank4))
    assert {answer.version.number for answer in published} == {1}
    assert [answer.created for answer in published].count(True) == 1
    assert publish(registry, DIAG, material.rank4.variant(1)).version.number == 2


def test_eight_threads_adding_the_same_base_and_node_converge(empty: Registry, material: Material) -> None:
    def work(_: int) -> tuple[str, str]:
        base = empty.add_base("tiny", material.base)
        return base.created_at, empty.create_node(ALICE).created_at

    assert len(set(_at_once(8, work))) == 1
    assert len(empty.events("tiny").items) == 5


# listing versions


def test_versions_are_listed_newest_first_page_by_page(registry: Registry, material: Material) -> None:
    for number in range(5):
        publish(registry, MED, material.rank8.variant(number))
    assert [version.number for version in all_pages(registry.versions, MED)] == [5, 4, 3, 2, 1]
    assert registry.versions(MED, limit=5).next is None


def test_versions_of_one_content_are_found_by_it(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    wanted = publish(registry, MED, material.rank8.variant(1)).version
    assert registry.versions(MED, content=wanted.content).items == [wanted]
    assert registry.versions(MED, content=sha256(b"nothing")).items == []


def test_a_grouping_has_no_version(registry: Registry, material: Material) -> None:
    registry.create_node(MED)
    assert registry.versions(MED).items == []
    for ask in (registry.version, registry.lineage, registry.dependents):
        with pytest.raises(NotFound, match="tiny/medicine is a grouping without a version"):
            ask(MED)


def test_a_selector_that_nothing_answers_to_is_not_found_and_what_there_is_is_named(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, MED, material.rank8.variant(1))
    registry.set_alias(MED, "stable", version=1, expected=None)
    for selector in ("3", "canary", sha256(b"nothing")):
        for ask in (registry.version, registry.resolve, registry.lineage, registry.ancestry, registry.dependents):
            with pytest.raises(NotFound, match=f"no version {selector}: it has versions 1 to 2, and the alias stable"):
                ask(f"{MED}@{selector}")


# resolving


def chain_of_four(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, CARDIO, material.rank4)
    publish(registry, DIAG, material.rank4.variant(1))
    publish(registry, ALICE, material.rank2)


def test_a_leaf_resolves_to_its_pinned_chain_and_its_composition_digest(registry: Registry, material: Material) -> None:
    chain_of_four(registry, material)
    resolution = registry.resolve(ALICE)
    assert resolution.ref == ALICE
    assert (resolution.base.name, resolution.base.digest) == ("tiny", material.base.digest)
    assert [link.path for link in resolution.chain] == [MED, CARDIO, DIAG, ALICE]
    assert [link.level for link in resolution.chain] == ["domain", "subdomain", "task", "user"]
    assert [(link.version, link.head, link.weight) for link in resolution.chain] == [(1, 1, 1.0)] * 4
    assert [link.ranks for link in resolution.chain] == [[8], [4], [4], [2]]
    assert [link.scales for link in resolution.chain] == [[2.0]] * 4
    assert [link.files for link in resolution.chain] == [
        [adapter.file] for adapter in (material.rank8, material.rank4, material.rank4.variant(1), material.rank2)
    ]
    assert [link.pin.path for link in resolution.chain] == [None, MED, CARDIO, DIAG]
    assert [link.pin.digest for link in resolution.chain[1:]] == [link.digest for link in resolution.chain[:-1]]
    assert {link.follow for link in resolution.chain} == {None}
    assert not resolution.stale
    steps = tuple(Step(link.path, 1, registry.version(link.path).digest) for link in resolution.chain)
    assert resolution.to_chain() == Chain("tiny", material.base.digest, steps)
    assert resolution.composition == Chain("tiny", material.base.digest, steps).digest


def test_a_pinned_chain_stays_the_same_when_a_parent_moves_and_says_that_it_is_stale(
    registry: Registry, material: Material
) -> None:
    chain_of_four(registry, material)
    before = registry.resolve(ALICE)
    publish(registry, CARDIO, material.rank4.variant(9))
    after = registry.resolve(ALICE)
    assert after.composition == before.composition
    assert after.to_chain() == before.to_chain()
    assert after.stale
    assert [link.stale for link in after.chain] == [False, False, True, False]
    assert [link.head for link in after.chain] == [1, 2, 1, 1]
    assert not registry.resolve(MED).stale


def test_a_ref_resolves_the_version_that_its_selector_names(registry: Registry, material: Material) -> None:
    first = publish(registry, MED, material.rank8).version
    publish(registry, MED, material.rank8.variant(1))
    registry.set_alias(MED, "stable", version=1, expected=None)
    for ref in (f"{MED}@1", f"{MED}@stable", f"{MED}@{first.digest}"):
        assert [link.version for link in registry.resolve(ref).chain] == [1]
        assert registry.resolve(ref).ref == ref
    for ref in (MED, f"{MED}@latest"):
        assert [link.version for link in registry.resolve(ref).chain] == [2]


def test_a_grouping_resolves_to_the_head_of_its_nearest_ancestor_with_a_version(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    registry.create_node(DIAG)
    resolution = registry.resolve(DIAG)
    assert resolution.ref == DIAG
    assert [link.path for link in resolution.chain] == [MED]
    with pytest.raises(NotFound, match=f"{DIAG} is a grouping without a version"):
        registry.resolve(f"{DIAG}@1")


def test_a_base_and_a_grouping_without_versions_above_resolve_to_the_base_alone(
    registry: Registry, material: Material
) -> None:
    registry.create_node(DIAG)
    for ref in ("tiny", DIAG):
        resolution = registry.resolve(ref)
        assert (resolution.chain, resolution.stale) == ([], False)
        assert resolution.composition == Chain("tiny", material.base.digest).digest
    with pytest.raises(NotFound, match="tiny is a base, which has no versions"):
        registry.resolve("tiny@1")


def test_following_an_alias_changes_the_ancestors_where_it_is_set_and_marks_the_others(
    registry: Registry, material: Material
) -> None:
    chain_of_four(registry, material)
    publish(registry, MED, material.rank8.variant(2))
    publish(registry, CARDIO, material.rank4.variant(3), f"{MED}@1")
    registry.set_alias(MED, "stable", version=2, expected=None)
    registry.set_alias(ALICE, "stable", version=1, expected=None)
    chain = registry.resolve(ALICE, follow="stable").chain
    assert [(link.path, link.version, link.follow) for link in chain] == [
        (MED, 2, "alias"),
        (CARDIO, 1, "pin"),
        (DIAG, 1, "pin"),
        (ALICE, 1, None),
    ]
    assert registry.resolve(ALICE, follow="stable").composition != registry.resolve(ALICE).composition


def test_following_latest_takes_every_ancestors_head(registry: Registry, material: Material) -> None:
    chain_of_four(registry, material)
    publish(registry, MED, material.rank8.variant(2))
    publish(registry, ALICE, material.rank2.variant(2))
    chain = registry.resolve(f"{ALICE}@1", follow="latest").chain
    assert [(link.path, link.version, link.follow) for link in chain] == [
        (MED, 2, "alias"),
        (CARDIO, 1, "alias"),
        (DIAG, 1, "alias"),
        (ALICE, 1, None),
    ]


def test_following_an_alias_skips_groupings_and_takes_in_an_ancestor_that_the_pins_skip(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, ALICE, material.rank2)
    publish(registry, CARDIO, material.rank4)
    assert [link.path for link in registry.resolve(ALICE).chain] == [MED, ALICE]
    assert [link.path for link in registry.resolve(ALICE, follow="latest").chain] == [MED, CARDIO, ALICE]
    assert [link.path for link in registry.resolve(ALICE, follow="canary").chain] == [MED, ALICE]


def test_following_an_alias_of_another_spelling_is_refused(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    with pytest.raises(Invalid):
        registry.resolve(MED, follow="7")


# level weights


def test_a_level_weight_changes_its_level_alone_and_names_another_composition(
    registry: Registry, material: Material
) -> None:
    chain_of_four(registry, material)
    plain = registry.resolve(ALICE)
    weighted = registry.resolve(ALICE, weights={MED: 0.5, ALICE: -2})
    assert [link.weight for link in weighted.chain] == [0.5, 1.0, 1.0, -2.0]
    assert [replace(link, weight=1.0) for link in weighted.chain] == plain.chain
    steps = [
        replace(step, weight=link.weight) for step, link in zip(plain.to_chain().steps, weighted.chain, strict=True)
    ]
    assert weighted.to_chain() == Chain("tiny", material.base.digest, tuple(steps))
    assert weighted.composition == weighted.to_chain().digest != plain.composition


def test_a_weight_of_zero_drops_a_level_that_stays_in_the_chain(registry: Registry, material: Material) -> None:
    chain_of_four(registry, material)
    dropped = registry.resolve(ALICE, weights={DIAG: 0})
    assert [(link.path, link.weight) for link in dropped.chain] == [
        (MED, 1.0),
        (CARDIO, 1.0),
        (DIAG, 0.0),
        (ALICE, 1.0),
    ]
    assert dropped.composition != registry.resolve(ALICE).composition


def test_a_number_written_in_another_way_is_the_same_weight(registry: Registry, material: Material) -> None:
    chain_of_four(registry, material)
    plain, dropped = registry.resolve(ALICE), registry.resolve(ALICE, weights={MED: 0})
    for weights in (None, {}, {MED: 1}, {MED: 1.0, ALICE: 1}):
        assert repr(registry.resolve(ALICE, weights=weights)) == repr(plain)  # == takes 1 for 1.0 and True
    for zero in (0.0, -0.0):
        assert repr(registry.resolve(ALICE, weights={MED: zero})) == repr(dropped)


@pytest.mark.parametrize(
    "weight", [0.1, 0.1 + 0.2, -1e-7, 5e-324, 1e16, 1e21, 1e22, 2**53, 2**60, 1.7976931348623157e308, 1 - 2**-53]
)
def test_a_weight_is_kept_to_the_last_bit(registry: Registry, material: Material, weight: float) -> None:
    publish(registry, MED, material.rank8)
    resolution = registry.resolve(MED, weights={MED: weight})
    assert repr(resolution.chain[0].weight) == repr(float(weight))
    assert resolution.composition == resolution.to_chain().digest


def test_level_weights_are_of_the_chain_that_is_followed(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, ALICE, material.rank2)
    publish(registry, CARDIO, material.rank4)
    followed = registry.resolve(ALICE, follow="latest", weights={CARDIO: 0.25})
    assert [link.weight for link in followed.chain] == [1.0, 0.25, 1.0]
    with pytest.raises(Invalid, match=f"{CARDIO} is not in its chain"):
        registry.resolve(ALICE, weights={CARDIO: 0.25})


def test_weights_that_the_chain_does_not_take_are_refused_together_and_its_levels_are_named(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, ALICE, material.rank2)
    registry.create_node("tiny/law")
    weights: Any = {MED: float("nan"), "tiny/law": 1, CARDIO: 0.5, f"{MED}@1": 0.5, ALICE: "0.5", "tiny": 2, "": True}
    with pytest.raises(Invalid) as refused:
        registry.resolve(ALICE, weights=weights)
    assert str(refused.value) == (
        f"{ALICE} does not take these level weights ({MED} has NaN, expected a finite number; tiny/law is not in its "
        f'chain; {CARDIO} is not in its chain; {MED}@1 is not in its chain; {ALICE} has "0.5", expected a finite '
        f"number; tiny is not in its chain; '' is not in its chain): its levels are {MED}; {ALICE}"
    )


@pytest.mark.parametrize("weight", [float("inf"), float("-inf"), True, False, "1", None, 10**400, 2**53 + 1])
def test_a_weight_that_is_no_finite_number_is_refused(registry: Registry, material: Material, weight: Any) -> None:
    publish(registry, MED, material.rank8)
    with pytest.raises(Invalid, match=rf"\({MED} has .*, expected a finite number\): its levels are {MED}"):
        registry.resolve(MED, weights={MED: weight})


@pytest.mark.parametrize("rule", ["ordered", "override"])
def test_what_overrides_or_is_ordered_takes_the_weights_0_and_1_alone(
    registry: Registry, material: Material, rule: str
) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, CARDIO, getattr(material, rule))
    for weight in (0, 1):
        assert [link.weight for link in registry.resolve(CARDIO, weights={MED: 0.5, CARDIO: weight}).chain] == [
            0.5,
            weight,
        ]
    with pytest.raises(Invalid, match=f"{CARDIO}@1 has {rule} parts, so it takes 1, or 0 to drop the level, got 0.5"):
        registry.resolve(CARDIO, weights={MED: 0.5, CARDIO: 0.5})


def test_a_base_alone_has_no_level_to_weight(registry: Registry) -> None:
    with pytest.raises(Invalid, match=r"\(tiny is not in its chain\): it is the base alone, without a level"):
        registry.resolve("tiny", weights={"tiny": 0.5})


def test_a_ref_that_is_not_there_is_told_before_its_weights(registry: Registry) -> None:
    with pytest.raises(NotFound, match="tiny/nowhere is not known"):
        registry.resolve("tiny/nowhere", weights={"tiny/nowhere": 0.5})


# lineage


def test_lineage_runs_from_the_version_to_the_base_and_tells_how_each_pin_was_found(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, CARDIO, material.rank4, MED, found="lockfile")
    publish(registry, ALICE, material.rank2, f"{CARDIO}@1")
    publish(registry, MED, material.rank8.variant(1))
    lineage = registry.lineage(ALICE)
    assert lineage.base.name == "tiny"
    edges = [(edge.child, edge.parent, edge.found, edge.stale) for edge in lineage.edges]
    assert edges == [
        (f"{ALICE}@1", f"{CARDIO}@1", "explicit", False),
        (f"{CARDIO}@1", f"{MED}@1", "lockfile", True),
        (f"{MED}@1", None, "assumed", False),
    ]
    assert lineage.stale
    assert [edge.parent_digest for edge in lineage.edges[:-1]] == [edge.child_digest for edge in lineage.edges[1:]]
    assert registry.lineage("tiny").edges == []


def test_ancestry_is_every_version_that_one_was_trained_on_whole_and_itself_last(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, CARDIO, material.rank4, f"{MED}@1")
    publish(registry, MED, material.rank8.variant(1))
    publish(registry, ALICE, material.rank2, f"{CARDIO}@1", note="a leaf")
    expected = [registry.version(ref) for ref in (f"{MED}@1", f"{CARDIO}@1", ALICE)]
    for ref in (ALICE, f"{ALICE}@1", f"{ALICE}@{expected[-1].digest}"):
        assert registry.ancestry(ref) == expected
    assert [version.digest for version in expected] == [link.digest for link in registry.resolve(ALICE).chain]
    assert registry.ancestry("tiny") == []
    with pytest.raises(NotFound, match=f"{DIAG} is a grouping without a version"):
        registry.ancestry(DIAG)


def test_dependents_are_the_versions_trained_directly_on_one_in_the_order_of_publishing(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    for name in ("b", "a"):
        for number in range(2):
            publish(registry, f"{MED}/{name}", material.rank4.variant(number), f"{MED}@1")
    publish(registry, f"{MED}/a/below", material.rank2)
    found = all_pages(registry.dependents, f"{MED}@1", limit=1)
    assert [(version.path, version.number) for version in found] == [
        (f"{MED}/b", 1),
        (f"{MED}/b", 2),
        (f"{MED}/a", 1),
        (f"{MED}/a", 2),
    ]
    assert [(version.path, version.number) for version in registry.dependents(f"{MED}/a@2").items] == [
        (f"{MED}/a/below", 1)
    ]
    assert registry.dependents(f"{MED}/a@1").items == []


def test_dependents_of_a_base_are_the_versions_trained_on_it_and_on_no_other(
    registry: Registry, material: Material
) -> None:
    registry.add_base("other", material.other_base)
    publish(registry, "other/x", material.rank8)
    publish(registry, MED, material.rank8)
    publish(registry, CARDIO, material.rank4)
    publish(registry, "tiny/law", material.rank8)
    assert [version.path for version in all_pages(registry.dependents, "tiny", limit=1)] == [MED, "tiny/law"]


# aliases


def test_an_alias_is_set_moved_and_deleted_by_compare_and_swap(registry: Registry, material: Material) -> None:
    for number in range(3):
        publish(registry, MED, material.rank8.variant(number))
    first = registry.set_alias(MED, "stable", version=1, expected=None)
    assert (first.path, first.name, first.version) == (MED, "stable", 1)
    moved = registry.set_alias(MED, "stable", version=3, expected=1)
    assert moved.version == 3
    assert moved.updated_at > first.updated_at
    registry.set_alias(MED, "canary", version=2, expected=None)
    assert [(alias.name, alias.version) for alias in registry.aliases(MED)] == [("canary", 2), ("stable", 3)]
    assert registry.node(MED).aliases == {"canary": 2, "stable": 3}
    registry.delete_alias(MED, "canary", expected=2)
    assert registry.children("tiny").items[0].aliases == {"stable": 3}


def test_an_alias_that_is_elsewhere_is_not_moved_and_the_conflict_says_where(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, MED, material.rank8.variant(1))
    for expected in (1, 2):
        with pytest.raises(Conflict, match=f"stable of {MED} is not set, expected at version {expected}"):
            registry.set_alias(MED, "stable", version=1, expected=expected)
    with pytest.raises(Conflict, match="is not set"):
        registry.delete_alias(MED, "stable", expected=1)
    registry.set_alias(MED, "stable", version=2, expected=None)
    attempts: list[Callable[[], object]] = [
        lambda: registry.set_alias(MED, "stable", version=1, expected=1),
        lambda: registry.set_alias(MED, "stable", version=1, expected=None),
        lambda: registry.set_alias(MED, "stable", version=1, expected=9),
        lambda: registry.delete_alias(MED, "stable", expected=1),
    ]
    for attempt in attempts:
        with pytest.raises(Conflict, match=f"stable of {MED} is at version 2"):
            attempt()
    assert registry.node(MED).aliases == {"stable": 2}


def test_setting_an_alias_to_where_it_is_says_nothing_new(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank4)
    for expected in (None, 1, 1):
        assert registry.set_alias(MED, "stable", version=1, expected=expected).version == 1
    assert [event.kind for event in registry.events(MED).items].count("alias-set") == 1


def test_of_eight_threads_moving_an_alias_from_one_place_one_wins(registry: Registry, material: Material) -> None:
    for number in range(9):
        publish(registry, MED, material.rank8.variant(number))
    registry.set_alias(MED, "stable", version=1, expected=None)

    def move(number: int) -> bool:
        try:
            registry.set_alias(MED, "stable", version=number + 2, expected=1)
        except Conflict:
            return False
        return True

    assert _at_once(8, move).count(True) == 1


@pytest.mark.parametrize("name", ["latest", "Stable", "1", "", "a/b", "sha256:00", "x" * 65])
def test_a_name_that_no_alias_may_have_is_refused(registry: Registry, material: Material, name: str) -> None:
    publish(registry, MED, material.rank8)
    with pytest.raises(Invalid):
        registry.set_alias(MED, name, version=1, expected=None)


@pytest.mark.parametrize(("version", "error"), [(2, NotFound), (0, Invalid), (-1, Invalid), (2**70, Invalid)])
def test_an_alias_of_a_version_that_is_not_there_is_refused(
    registry: Registry, material: Material, version: int, error: type[LoratreeError]
) -> None:
    publish(registry, MED, material.rank8)
    with pytest.raises(error):
        registry.set_alias(MED, "stable", version=version, expected=None)
    assert registry.aliases(MED) == []


# events


def test_every_change_writes_one_event_newest_first_at_its_path(registry: Registry, material: Material) -> None:
    publish(registry, CARDIO, material.rank8)
    registry.set_alias(CARDIO, "stable", version=1, expected=None)
    registry.delete_alias(CARDIO, "stable", expected=1)
    events = all_pages(registry.events, "tiny")
    assert [(event.kind, event.path) for event in events] == [
        ("alias-deleted", CARDIO),
        ("alias-set", CARDIO),
        ("version-published", CARDIO),
        ("node-created", CARDIO),
        ("node-created", MED),
        ("base-added", "tiny"),
    ]
    assert [event.id for event in events] == sorted((event.id for event in events), reverse=True)
    published = events[2].detail
    assert published == {"version": 1, "digest": registry.version(CARDIO).digest, "pin": None}
    assert [event.path for event in registry.events(MED).items] == [CARDIO] * 4 + [MED]


def test_a_refused_change_writes_no_event(registry: Registry, material: Material) -> None:
    publish(registry, MED, material.rank8)
    before = registry.events("tiny").items
    with pytest.raises(Conflict):
        registry.delete_alias(MED, "stable", expected=1)
    with pytest.raises(Conflict):
        registry.add_base("tiny", material.other_base)
    assert registry.events("tiny").items == before


def _assert_untouched(registry: Registry) -> None:
    """Nothing but the base was ever written."""
    assert registry.descendants("tiny").items == []
    assert [event.kind for event in registry.events("tiny").items] == ["base-added"]


def _at_once(threads: int, work: Callable[[int], Any]) -> list[Any]:
    """Runs `work(0)`, `work(1)`, … in threads that start together."""
    barrier = threading.Barrier(threads)

    def run(number: int) -> Any:
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def test_a_manifest_without_parameters_is_refused(empty: Registry) -> None:
    with pytest.raises(Invalid, match="it has no parameters"):
        empty.add_base("tiny", BaseManifest(parameters=()))
