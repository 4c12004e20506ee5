"""Withdrawing, quarantine, deleting and retention, as every Registry does them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loratree_registry.core.kinds import kinds_of
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Conflict, Gone, Invalid, LoratreeError, NotFound, Quarantined
from loratree_registry.workspace.fetch import pull
from tests.registry.material import WEIGHTS, Material, publish

MED, CARDIO, DIAG = "tiny/medicine", "tiny/medicine/cardiology", "tiny/medicine/cardiology/diagnosis"
Refuse = Callable[[Registry, str], object]


@pytest.fixture
def chain(registry: Registry, material: Material) -> Registry:
    """Two versions of medicine, a cardiology that was trained on the first, and a diagnosis on that."""
    publish(registry, MED, material.rank8)
    publish(registry, CARDIO, material.rank4, f"{MED}@1")
    publish(registry, DIAG, material.rank2, f"{CARDIO}@1")
    publish(registry, MED, material.rank8.variant(2))
    return registry


def read(registry: Registry, ref: str) -> bytes:
    with registry.open_file(ref, WEIGHTS) as stream:
        return stream.read()


def kinds(registry: Registry, path: str) -> list[str]:
    return [event.kind for event in registry.events(path).items]


# withdrawing


def test_a_withdrawn_version_is_no_head_and_resolves_by_number_digest_and_pin(chain: Registry) -> None:
    marked = chain.withdraw(f"{MED}@2", reason="diverges")
    assert marked.withdrawn is not None
    assert marked.withdrawn.reason == "diverges"
    assert chain.node(MED).head == 1
    assert chain.version(MED).number == 1
    for ref in (f"{MED}@2", f"{MED}@{marked.digest}"):
        assert [link.withdrawn for link in chain.resolve(ref).chain] == [marked.withdrawn]
    chain.withdraw(f"{MED}@1", reason="also")
    assert chain.node(MED).head is None
    above, leaf = chain.resolve(CARDIO).chain
    assert (above.withdrawn and above.withdrawn.reason, above.head, leaf.withdrawn) == ("also", None, None)
    assert leaf.stale
    with pytest.raises(NotFound, match=r"has no version that is not withdrawn: name one by its number"):
        chain.version(MED)
    edges = chain.lineage(CARDIO).edges
    assert [edge.withdrawn and edge.withdrawn.reason for edge in edges] == [None, "also"]


@pytest.mark.parametrize("selector", ["", "@latest"])
def test_a_path_without_a_version_left_is_refused_and_does_not_mean_what_is_above_it(
    chain: Registry, selector: str
) -> None:
    chain.create_node(f"{DIAG}/empty")
    chain.withdraw(f"{DIAG}@1", reason="diverges")
    for strict in (False, True):
        with pytest.raises(NotFound, match=f"^{DIAG} has no version that is not withdrawn: .*{DIAG}@1.* {CARDIO} to"):
            chain.resolve(f"{DIAG}{selector}", strict=strict)
    if not selector:  # a grouping below it would mean what is above it as well
        with pytest.raises(NotFound, match=f"^{DIAG}/empty has no version, and {DIAG} has no version that is not"):
            chain.resolve(f"{DIAG}/empty")
    with pytest.raises(NotFound, match="has no version that is not withdrawn"):
        chain.resolve(f"{DIAG}{selector}", follow="latest")
    assert [link.version for link in chain.resolve(f"{DIAG}@1").chain] == [1, 1, 1]
    chain.delete(f"{DIAG}@1", reason="a mistake")
    for ask in (chain.resolve, chain.version, chain.lineage):
        with pytest.raises(Gone, match=rf"^every version of {DIAG} was deleted, {DIAG}@1 last \(a mistake\)"):
            ask(f"{DIAG}{selector}")


def test_nodes_have_the_marks_of_their_heads_in_every_list(chain: Registry) -> None:
    def marks() -> dict[str, list[str]]:
        found = {node.path.rpartition("/")[2]: [*node.marks] for node in chain.descendants("tiny").items}
        assert found["medicine"] == chain.node(MED).marks == chain.children("tiny").items[0].marks
        assert chain.node("tiny").marks == []
        return found

    assert marks() == {"medicine": [], "cardiology": ["stale"], "diagnosis": []}
    chain.withdraw(f"{MED}@2", reason="diverges")
    assert marks() == {"medicine": [], "cardiology": [], "diagnosis": []}
    chain.withdraw(f"{MED}@1", reason="also")
    chain.quarantine(f"{CARDIO}@1", reason="leaked")
    assert marks() == {"medicine": ["withdrawn"], "cardiology": ["stale", "quarantined"], "diagnosis": []}
    chain.withdraw(f"{CARDIO}@1", reason="leaked")
    assert marks() == {"medicine": ["withdrawn"], "cardiology": ["withdrawn"], "diagnosis": ["stale"]}
    chain.delete(f"{DIAG}@1", reason="old")
    chain.create_node(f"{DIAG}/never")
    assert marks() == {"medicine": ["withdrawn"], "cardiology": ["withdrawn"], "diagnosis": ["deleted"], "never": []}


def test_nodes_say_what_their_heads_are_made_of_and_how_their_pins_were_found(
    chain: Registry, material: Material
) -> None:
    def told(path: str) -> tuple[list[str], list[int], str | None]:
        node = chain.node(path)
        assert node in [*chain.descendants("tiny").items, *chain.children("tiny").items, chain.node("tiny")]
        assert node.head is None or node.pin == chain.version(path).pin
        return [*node.kinds], node.ranks, node.pin and node.pin.found

    assert told(MED)[0] == ["LoRA"]
    assert told(MED)[1:] == ([8], "assumed")
    assert (told("tiny"), told(chain.create_node("tiny/empty").path)) == (([], [], None), ([], [], None))
    publish(chain, "tiny/dora", material.ordered, None)
    assert told("tiny/dora") == (["DoRA"], chain.version("tiny/dora").summary.ranks, "assumed")
    publish(chain, "tiny/whole", material.override, "base")
    whole = chain.version("tiny/whole")
    assert told("tiny/whole")[0] == kinds_of(whole.config, ranks=whole.summary.ranks, rules=whole.summary.rules)
    assert "saved modules" in told("tiny/whole")[0]
    publish(chain, "tiny/dora", material.rank4, "base")
    assert told("tiny/dora") == (["LoRA"], [4], "explicit")
    chain.withdraw("tiny/dora@2", reason="diverges")
    assert told("tiny/dora")[0] == ["DoRA"]
    chain.withdraw("tiny/dora@1", reason="diverges")
    assert told("tiny/dora") == ([], [], None)


def test_withdrawing_again_changes_nothing_and_undoing_gives_the_head_back(chain: Registry) -> None:
    first = chain.withdraw(f"{MED}@2", reason="diverges")
    assert chain.withdraw(f"{MED}@2", reason="diverges") == first
    again = chain.withdraw(f"{MED}@2", reason="diverges badly")
    assert again.withdrawn is not None
    assert again.withdrawn.reason == "diverges badly"
    assert chain.reinstate(f"{MED}@2").withdrawn is None
    assert chain.reinstate(f"{MED}@2").withdrawn is None
    assert chain.node(MED).head == 2
    assert kinds(chain, MED)[:3] == ["version-reinstated", "version-withdrawn", "version-withdrawn"]


def test_strict_refuses_a_chain_that_holds_withdrawn_versions_naming_all(chain: Registry, tmp_path: Path) -> None:
    assert chain.resolve(DIAG, strict=True) == chain.resolve(DIAG)
    for path in (MED, CARDIO):
        chain.withdraw(f"{path}@1", reason=f"no {path}")
    with pytest.raises(Conflict, match=f"{MED}@1 .no {MED}.; {CARDIO}@1 .no {CARDIO}."):
        chain.resolve(DIAG, strict=True)
    with pytest.raises(Conflict, match="withdrawn versions"):
        pull(chain, tmp_path, DIAG, tmp_path / "out", strict=True)
    assert pull(chain, tmp_path, DIAG, tmp_path / "out").number == 1


def test_an_alias_and_a_withdrawal_exclude_each_other(chain: Registry) -> None:
    chain.set_alias(MED, "stable", version=2, expected=None)
    with pytest.raises(Conflict, match=f"named by the alias stable: move it by `loratree alias set {MED} stable"):
        chain.withdraw(f"{MED}@2", reason="diverges")
    chain.set_alias(MED, "stable", version=1, expected=2)
    chain.withdraw(f"{MED}@2", reason="diverges")
    with pytest.raises(Conflict, match=r"was withdrawn \(diverges\), so no alias may name it"):
        chain.set_alias(MED, "stable", version=2, expected=1)
    assert chain.node(MED).aliases == {"stable": 1}


def test_publishing_warns_of_a_withdrawn_version_and_of_a_withdrawn_pin(chain: Registry, material: Material) -> None:
    chain.withdraw(f"{MED}@2", reason="diverges")
    again = publish(chain, MED, material.rank8.variant(2))
    assert (again.created, again.version.number) == (False, 2)
    assert f"{MED}@2 holds the same and was withdrawn (diverges)" in again.warnings[0]
    below = publish(chain, CARDIO, material.rank4.variant(5), f"{MED}@2")
    assert (below.created, f"{MED}@2, which it was trained on, was withdrawn (diverges)" in below.warnings) == (
        True,
        True,
    )


@pytest.mark.parametrize(("ref", "now"), [(MED, 2), (f"{MED}@latest", 2), (f"{MED}@canary", 1)])
def test_what_may_name_another_version_tomorrow_is_not_marked_or_deleted(chain: Registry, ref: str, now: int) -> None:
    chain.set_alias(MED, "canary", version=1, expected=None)
    for refused in (chain.withdraw, chain.quarantine, chain.delete):
        with pytest.raises(
            Invalid, match=f"is version {now} now, .* give the number or the digest, as {MED}@{now} does"
        ):
            refused(ref, reason="diverges")
    chain.quarantine(f"{MED}@{now}", reason="diverges")  # as the sentence says
    with pytest.raises(NotFound, match="has no version stable"):
        chain.withdraw(f"{MED}@stable", reason="diverges")
    with pytest.raises(Invalid, match="the reason is empty"):
        chain.delete(f"{MED}@2", reason=" ")


@pytest.mark.parametrize("ref", ["tiny", "tiny@1"])
def test_a_base_is_not_marked_or_deleted_as_it_has_no_versions(chain: Registry, ref: str) -> None:
    for refused in (chain.withdraw, chain.quarantine, chain.delete):
        with pytest.raises(Invalid, match="tiny is a base, which has no versions"):
            refused(ref, reason="diverges")


# quarantine

REFUSED: dict[str, Refuse] = {
    "resolve": lambda registry, ref: registry.resolve(ref),
    "resolve by following": lambda registry, ref: registry.resolve(ref, follow="latest"),
    "open_file": read,
}


@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED)
def test_a_quarantined_version_stops_every_chain_through_it(chain: Registry, use: Refuse) -> None:
    marked = chain.quarantine(f"{MED}@1", reason="names of patients")
    for ref in (f"{MED}@1", CARDIO, f"{DIAG}@1"):
        with pytest.raises(Quarantined, match=f"{MED}@1 is quarantined .names of patients."):
            use(chain, ref)
    use(chain, MED)  # version 2 was not trained on it
    assert chain.version(f"{MED}@1") == marked
    assert [edge.quarantined for edge in chain.lineage(DIAG).edges] == [None, None, marked.quarantined]
    assert [version.path for version in chain.dependents(f"{MED}@1").items] == [CARDIO]
    chain.lift_quarantine(f"{MED}@1")
    use(chain, DIAG)
    assert kinds(chain, MED)[:2] == ["quarantine-lifted", "version-quarantined"]


def test_a_quarantined_version_is_not_pulled_from_this_machines_cache_either(chain: Registry, tmp_path: Path) -> None:
    pull(chain, tmp_path, CARDIO, tmp_path / "before")
    chain.quarantine(f"{MED}@1", reason="names of patients")
    with pytest.raises(Quarantined):
        pull(chain, tmp_path, CARDIO, tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_nothing_is_published_on_a_quarantined_version_nor_its_content_again(
    chain: Registry, material: Material
) -> None:
    chain.quarantine(f"{MED}@2", reason="names of patients")
    nodes = chain.descendants("tiny").items
    for parent in (f"{MED}@2", None):  # None: its head
        with pytest.raises(Quarantined, match=f"{MED}@2 is quarantined"):
            publish(chain, "tiny/medicine/oncology", material.rank4, parent)
    for again in (None, "base"):
        with pytest.raises(Quarantined, match=r"holds or held the same content and is quarantined"):
            publish(chain, MED, material.rank8.variant(2), again)
    chain.delete(f"{MED}@2", reason="away with it")
    with pytest.raises(Quarantined, match=f"{MED}@2 holds or held the same content"):
        publish(chain, MED, material.rank8.variant(2))
    assert [node.path for node in chain.descendants("tiny").items] == [node.path for node in nodes]
    assert chain.tombstones(MED).items[0].quarantined == "names of patients"


def test_quarantined_bytes_are_refused_at_every_node_whatever_their_config_and_pin(
    chain: Registry, material: Material
) -> None:
    publish(chain, "tiny/law", material.rank4, "base")  # before the quarantine
    marked = chain.quarantine(f"{CARDIO}@1", reason="names of patients")
    before = [*chain.descendants("tiny").items], [*chain.events("tiny").items]
    changed = replace(material.rank4, config=material.rank4.config | {"lora_alpha": 99})
    for path in ("tiny/tax", "tiny/law", CARDIO):
        for adapter, parent in ((changed, "base"), (material.rank4, "base"), (changed, None)):
            if (path, adapter) == ("tiny/law", material.rank4):
                continue
            with pytest.raises(Quarantined) as refused:
                publish(chain, path, adapter, parent)
            assert f"{CARDIO}@1 " in str(refused.value)
            assert "is quarantined (names of patients)" in str(refused.value)
    with pytest.raises(Quarantined, match=f"^tiny/tax cannot .* end it by `loratree quarantine {CARDIO}@1 --undo`$"):
        publish(chain, "tiny/tax", material.rank4)
    assert (chain.descendants("tiny").items, chain.events("tiny").items) == before
    assert publish(chain, "tiny/law", material.rank4, "base").created is False  # what is there stays there
    held = {chosen: chain.holders(material.rank4.file.sha256, quarantined=chosen).items for chosen in (False, True)}
    assert held == {False: [marked, chain.version("tiny/law@1")], True: [marked]}
    assert chain.holders(material.rank4.variant(7).file.sha256).items == []
    publish(chain, "tiny/tax", material.rank4.variant(7))
    chain.lift_quarantine(f"{CARDIO}@1")
    assert publish(chain, "tiny/tax", material.rank4, "base").version.files == marked.files


# deleting


def test_a_deleted_version_leaves_a_tombstone_and_the_head_moves(chain: Registry, material: Material) -> None:
    gone = chain.version(f"{MED}@2")
    left = chain.delete(f"{MED}@2", reason="by mistake")
    assert (left.path, left.number, left.digest, left.content) == (MED, 2, gone.digest, gone.content)
    assert (left.reason, left.quarantined, left.created_at) == ("by mistake", None, gone.created_at)
    assert chain.tombstones(MED).items == [left]
    assert chain.node(MED).head == 1
    asked: list[Refuse] = [
        lambda registry, ref: registry.version(ref),
        lambda registry, ref: registry.resolve(ref),
        lambda registry, ref: registry.lineage(ref),
        read,
        lambda registry, ref: registry.delete(ref, reason="again"),
    ]
    for ask in asked:
        for ref in (f"{MED}@2", f"{MED}@{gone.digest}"):
            with pytest.raises(Gone, match=rf"{MED}@2 was deleted on 20..-..-.. \(by mistake\)"):
                ask(chain, ref)
    again = publish(chain, MED, material.rank8.variant(2))
    assert (again.created, again.version.number, again.version.digest) == (True, 3, gone.digest)
    assert chain.version(f"{MED}@{gone.digest}").number == 3
    assert kinds(chain, MED)[:2] == ["version-published", "version-deleted"]


def test_deleting_is_refused_while_something_needs_the_version(chain: Registry, material: Material) -> None:
    for number in range(2, 9):
        publish(chain, CARDIO, material.rank4.variant(number), f"{MED}@1")
    with pytest.raises(Conflict, match=rf"{CARDIO}@1; .*{CARDIO}@5; and 3 more were trained on it"):
        chain.delete(f"{MED}@1", reason="old")
    chain.set_alias(MED, "stable", version=2, expected=None)
    with pytest.raises(Conflict, match="named by the alias stable"):
        chain.delete(f"{MED}@2", reason="old")
    assert [version.number for version in chain.versions(MED).items] == [2, 1]
    assert chain.tombstones(MED).items == []


def test_tombstones_page_by_number(chain: Registry, material: Material) -> None:
    for number in (3, 4):
        publish(chain, MED, material.rank8.variant(number))
    for number in (3, 2, 4):
        chain.delete(f"{MED}@{number}", reason="old")
    first = chain.tombstones(MED, limit=2)
    rest = chain.tombstones(MED, limit=2, after=first.next)
    assert [left.number for left in [*first.items, *rest.items]] == [4, 3, 2]
    assert rest.next is None
    with pytest.raises(NotFound):
        chain.tombstones("tiny/unknown")


def test_a_node_whose_versions_are_all_deleted_is_skipped_by_what_is_published_below_it(
    registry: Registry, material: Material
) -> None:
    publish(registry, MED, material.rank8)
    publish(registry, CARDIO, material.rank4, "base")
    registry.delete(f"{CARDIO}@1", reason="old")
    assert registry.node(CARDIO).head is None
    publish(registry, DIAG, material.rank2, f"{MED}@1")
    assert [link.path for link in registry.resolve(DIAG).chain] == [MED, DIAG]
    with pytest.raises(Gone, match=f"every version of {CARDIO} was deleted"):
        registry.resolve(CARDIO)


# retention


def test_retention_keeps_the_newest_the_head_and_what_is_pinned_or_aliased(chain: Registry, material: Material) -> None:
    for number in range(3, 9):
        publish(chain, MED, material.rank8.variant(number))
    chain.set_alias(MED, "stable", version=3, expected=None)
    for number in (6, 7, 8):
        chain.withdraw(f"{MED}@{number}", reason="diverges")  # the head is 5
    would = chain.retain(MED, keep=2, dry_run=True)
    assert (would.path, would.deleted, would.kept) == (MED, [2, 4, 6], 5)
    assert [version.number for version in chain.versions(MED).items] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert chain.retain(MED, keep=2) == would
    assert [version.number for version in chain.versions(MED).items] == [8, 7, 5, 3, 1]
    assert [left.reason for left in chain.tombstones(MED).items] == ["retention kept the newest 2"] * 3
    assert chain.retain(MED, keep=2).deleted == []
    with pytest.raises(Invalid, match="retention keeps 1 to"):
        chain.retain(MED, keep=0)


def test_what_retention_would_delete_is_listed_for_a_whole_subtree(chain: Registry, material: Material) -> None:
    for number in range(3, 9):
        publish(chain, MED, material.rank8.variant(number))
    for number in (6, 7, 8):
        chain.withdraw(f"{MED}@{number}", reason="diverges")
    publish(chain, f"{MED}-x", material.rank8, "base")
    for path in (f"{MED}-x", CARDIO):
        for number in (1, 2):
            publish(chain, path, material.rank4.variant(number), "base")
    would = [chain.retain(path, keep=1, dry_run=True) for path in ("tiny", MED, f"{MED}-x", CARDIO)]
    expected = sorted((each for each in would if each.deleted), key=lambda each: each.path)
    assert [each.path for each in expected] == [MED, f"{MED}-x", CARDIO]
    listed = chain.crowded("tiny", keep=1)
    assert ([each for each in listed.items if each.deleted], listed.next) == (expected, None)
    assert {each.path for each in chain.crowded(MED, keep=1).items} >= {MED, CARDIO}
    assert f"{MED}-x" not in {each.path for each in chain.crowded(MED, keep=1).items}
    found, after = [], None
    while True:
        page = chain.crowded("tiny", keep=1, after=after, limit=1)
        found += page.items
        if page.next is None:
            break
        after = page.next
    assert found == listed.items
    assert chain.crowded(CARDIO, keep=50).items == []
    with pytest.raises(Invalid, match="retention keeps 1 to"):
        chain.crowded("tiny", keep=0)
    with pytest.raises(NotFound):
        chain.crowded("tiny/unknown", keep=1)


def test_what_is_not_there_is_not_marked(chain: Registry) -> None:
    calls: list[Refuse] = [
        lambda registry, ref: registry.withdraw(ref, reason="why"),
        lambda registry, ref: registry.reinstate(ref),
        lambda registry, ref: registry.quarantine(ref, reason="why"),
        lambda registry, ref: registry.lift_quarantine(ref),
        lambda registry, ref: registry.delete(ref, reason="why"),
    ]
    for call in calls:
        for ref in (f"{MED}@7", "tiny/unknown@1"):
            with pytest.raises(NotFound):
                call(chain, ref)
        with pytest.raises(LoratreeError):
            call(chain, "Tiny@1")
