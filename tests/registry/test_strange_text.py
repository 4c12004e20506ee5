"""Whatever text is given to whichever argument, every registry raises its own errors alone."""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratree_registry.core.manifest import BaseManifest, Parameter
from loratree_registry.core.records import Submission
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Invalid, LoratreeError, Unavailable
from tests.registry.material import Material, publish

DIGEST = "sha256:" + "0" * 64
MED = "tiny/medicine"
STRANGE = st.text(st.characters(), max_size=12) | st.sampled_from(["\0", "\ud800", "9" * 18, "9" * 9, "a" * 5000, "@"])
TEXT = STRANGE | st.builds("{}{}".format, st.sampled_from(["tiny/", f"{MED}@", "sha256:"]), STRANGE)


def _opened(registry: Registry, ref: str, name: str) -> None:
    with registry.open_file(ref, name):
        pass


def _manifest(registry: Registry, **changed: Any) -> None:
    parameter = Parameter(name="x", shape=(1,), dtype="F32", kind="Linear", sha256=DIGEST)
    registry.add_base("strange", BaseManifest(parameters=(replace(parameter, **changed),), architecture="x"))


def _submitted(registry: Registry, material: Material, **changed: Any) -> None:
    file = changed.pop("file", {})
    sent = Submission(config=material.rank4.config, files=[material.rank4.file], parent=MED, found="explicit")
    registry.publish(f"{MED}/x", replace(sent, files=[replace(sent.files[0], **file)], **changed))


Ask = Callable[[Registry, Material, Any], object]
ASKS: dict[str, Ask] = {
    "add_base name": lambda r, m, t: r.add_base(t, m.base),
    "add_base source": lambda r, m, t: r.add_base("tiny", m.base, source=t),
    "add_base tensor": lambda r, m, t: _manifest(r, name=t),
    "add_base dtype": lambda r, m, t: _manifest(r, dtype=t),
    "add_base kind": lambda r, m, t: _manifest(r, kind=t),
    "add_base tied_to": lambda r, m, t: _manifest(r, sha256=None, tied_to=t),
    "add_base digest": lambda r, m, t: _manifest(r, sha256=t),
    "add_base architecture": lambda r, m, t: r.add_base("tiny", replace(m.base, architecture=t)),
    "bases": lambda r, m, t: r.bases(after=t),
    "base": lambda r, m, t: r.base(t),
    "set_source": lambda r, m, t: r.set_source("tiny", t),
    "set_source name": lambda r, m, t: r.set_source(t, "x"),
    "remove_base": lambda r, m, t: r.remove_base(t),
    "remove_node": lambda r, m, t: r.remove_node(t),
    "base_manifest": lambda r, m, t: r.base_manifest(t),
    "create_node": lambda r, m, t: r.create_node(t),
    "create_node level": lambda r, m, t: r.create_node(MED, level=t),
    "node": lambda r, m, t: r.node(t),
    "children": lambda r, m, t: r.children(t),
    "children after": lambda r, m, t: r.children("tiny", after=t),
    "descendants": lambda r, m, t: r.descendants(t),
    "count": lambda r, m, t: r.count(t),
    "descendants after": lambda r, m, t: r.descendants("tiny", after=t),
    "versions": lambda r, m, t: r.versions(t),
    "versions content": lambda r, m, t: r.versions(MED, content=t),
    "versions after": lambda r, m, t: r.versions(MED, after=t),
    "version": lambda r, m, t: r.version(t),
    "resolve": lambda r, m, t: r.resolve(t),
    "resolve follow": lambda r, m, t: r.resolve(MED, follow=t),
    "resolve weights": lambda r, m, t: r.resolve(MED, weights={t: 1.0, MED: t}),
    "ancestry": lambda r, m, t: r.ancestry(t),
    "lineage": lambda r, m, t: r.lineage(t),
    "dependents": lambda r, m, t: r.dependents(t),
    "dependents after": lambda r, m, t: r.dependents(MED, after=t),
    "holders": lambda r, m, t: r.holders(t),
    "holders after": lambda r, m, t: r.holders(m.rank4.file.sha256, after=t),
    "upload": lambda r, m, t: r.upload(io.BytesIO(b"x"), sha256=t, size=1),
    "publish": lambda r, m, t: r.publish(t, Submission(config={}, files=[], parent=None, found="assumed")),
    "publish config": lambda r, m, t: _submitted(r, m, config=m.rank4.config | {t: t}),
    "publish document": lambda r, m, t: _submitted(r, m, documents={t: t}),
    "documents": lambda r, m, t: r.documents(t),
    "publish task": lambda r, m, t: _submitted(r, m, config=m.rank4.config | {"task_type": t}),
    "publish file name": lambda r, m, t: _submitted(r, m, file={"name": t}),
    "publish file digest": lambda r, m, t: _submitted(r, m, file={"sha256": t}),
    "publish parent": lambda r, m, t: _submitted(r, m, parent=t),
    "publish found": lambda r, m, t: _submitted(r, m, found=t),
    "publish level": lambda r, m, t: _submitted(r, m, level=t),
    "publish note": lambda r, m, t: _submitted(r, m, note=t),
    "set_alias": lambda r, m, t: r.set_alias(t, "x", version=1, expected=None),
    "set_alias alias": lambda r, m, t: r.set_alias(MED, t, version=1, expected=None),
    "delete_alias": lambda r, m, t: r.delete_alias(t, "x", expected=1),
    "delete_alias alias": lambda r, m, t: r.delete_alias(MED, t, expected=1),
    "aliases": lambda r, m, t: r.aliases(t),
    "events": lambda r, m, t: r.events(t),
    "events after": lambda r, m, t: r.events(MED, after=t),
    "missing_files": lambda r, m, t: r.missing_files(t, [m.rank4.file]),
    "missing_files name": lambda r, m, t: r.missing_files("tiny", [replace(m.rank4.file, name=t)]),
    "missing_files digest": lambda r, m, t: r.missing_files("tiny", [replace(m.rank4.file, sha256=t)]),
    "store_base": lambda r, m, t: r.store_base(t, [m.rank4.file]),
    "store_base name": lambda r, m, t: r.store_base("tiny", [replace(m.rank4.file, name=t)]),
    "store_base digest": lambda r, m, t: r.store_base("tiny", [replace(m.rank4.file, sha256=t)]),
    "base_files": lambda r, m, t: r.base_files(t),
    "damaged_files": lambda r, m, t: r.damaged_files(t),
    "withdraw": lambda r, m, t: r.withdraw(t, reason="x"),
    "withdraw reason": lambda r, m, t: r.withdraw(f"{MED}@1", reason=t),
    "reinstate": lambda r, m, t: r.reinstate(t),
    "quarantine": lambda r, m, t: r.quarantine(t, reason="x"),
    "quarantine reason": lambda r, m, t: r.quarantine(f"{MED}@2", reason=t),
    "lift_quarantine": lambda r, m, t: r.lift_quarantine(t),
    "delete": lambda r, m, t: r.delete(t, reason="x"),
    "delete reason": lambda r, m, t: r.delete(f"{MED}@3", reason=t),
    "tombstones": lambda r, m, t: r.tombstones(t),
    "tombstones after": lambda r, m, t: r.tombstones(MED, after=t),
    "crowded": lambda r, m, t: r.crowded(t, keep=9),
    "crowded after": lambda r, m, t: r.crowded("tiny", keep=9, after=t),
    "retain": lambda r, m, t: r.retain(t, keep=9),
    "local_file": lambda r, m, t: r.local_file(t, "x"),
    "local_file name": lambda r, m, t: r.local_file(MED, t),
    "open_file": lambda r, m, t: _opened(r, t, "x"),
    "open_file name": lambda r, m, t: _opened(r, MED, t),
}


def test_every_method_that_takes_text_is_asked() -> None:
    methods = {name for name in vars(Registry) if not name.startswith("_")} - {"close"}
    assert {ask.split()[0] for ask in ASKS} == methods


def test_a_registry_raises_its_own_errors_alone(registry: Registry, material: Material) -> None:
    for number in range(3):
        publish(registry, MED, material.rank4.variant(number))

    @settings(max_examples=15, suppress_health_check=list(HealthCheck), database=None)
    @given(text=TEXT)
    def every_ask(text: str) -> None:
        for name, one in ASKS.items():
            try:
                one(registry, material, text)
            except Unavailable as error:
                pytest.fail(f"{name}: {error}")
            except LoratreeError:
                continue

    every_ask()


@pytest.mark.parametrize("content", ["\0", "\ud800", "", "x", DIGEST + "\n"])
def test_a_content_that_is_no_digest_is_refused(registry: Registry, content: str) -> None:
    with pytest.raises(Invalid, match=r"content is|cannot be asked for"):
        registry.versions("tiny", content=content)


def test_a_page_behind_the_last_number_that_a_column_holds_is_refused_or_empty(registry: Registry) -> None:
    with pytest.raises(Invalid, match="not a place in this listing"):
        registry.versions("tiny", after="9" * 18)
    assert registry.versions("tiny", after="9" * 9).items == []
    assert len(registry.events("tiny", after="9" * 18).items) == 1
    assert registry.dependents("tiny", after="9" * 18).items == []
