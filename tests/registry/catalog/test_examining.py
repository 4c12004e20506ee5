"""What is kept of an adapter's examination holds for adapters that are alike, and for no other."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import pytest

from loratree_registry.catalog import examining
from loratree_registry.catalog.examining import KEPT, Examined, Examiner
from loratree_registry.catalog.inspection import Inspection, inspect
from loratree_registry.core.records import Submission
from loratree_registry.errors import Invalid
from tests.registry.material import Adapter, Material

PATH, PARENT = "llama/legal/contracts", "llama/legal@1"


def sent(adapter: Adapter, parent: str | None = None) -> tuple[Inspection, Submission]:
    """An adapter as publishing sees it."""
    inspection = inspect(io.BytesIO(adapter.weights), len(adapter.weights), "adapter")
    found = "explicit" if parent else "assumed"
    submission = Submission(
        config=adapter.config, files=[adapter.file], parent=parent, found=found, level=None, note=None
    )
    return inspection, submission


def zeros(adapter: Adapter) -> Adapter:
    """The adapter before training: every value is zero, and the header is the same."""
    start = sent(adapter)[0].header.data_start
    return Adapter(adapter.config, adapter.weights[:start] + bytes(len(adapter.weights) - start))


def many(material: Material) -> Iterator[tuple[Adapter, str | None]]:
    """Adapters that differ in values, config, shapes, trained modules and pins."""
    scaled = replace(material.rank4, config=material.rank4.config | {"lora_alpha": 5})
    described = replace(material.rank4, config=material.rank4.config | {"rank_pattern": {"q_proj": 4}})
    given = [material.rank8, material.rank4, scaled, described, material.rank2, material.override]
    for adapter in [*given, material.rank4.variant(1), zeros(material.rank4), material.override.variant(2)]:
        yield from itertools.product([adapter], [None, PARENT])


def test_results_do_not_depend_on_what_was_examined_before(material: Material) -> None:
    shared = Examiner(material.base)
    for _ in range(2):
        for adapter, parent in many(material):
            inspection, submission = sent(adapter, parent)
            shared.check_shapes(submission, inspection.header)
            found = shared.examine(inspection, PATH, submission)
            assert found == Examiner(material.base).examine(inspection, PATH, submission)


def test_the_second_of_two_adapters_that_are_alike_is_not_classified(material: Material) -> None:
    examiner = Examiner(material.base)
    inspection, submission = sent(material.rank4)
    examiner.check_shapes(submission, inspection.header)
    first = examiner.examine(inspection, PATH, submission)
    with mock.patch.object(examining, "classify", side_effect=AssertionError):
        inspection, submission = sent(material.rank4.variant(3))
        with mock.patch.object(examining, "check_without_values", side_effect=AssertionError):
            examiner.check_shapes(submission, inspection.header)
        second = examiner.examine(inspection, PATH, submission)
    assert second.content != first.content
    assert replace(second, content=first.content) == first


@pytest.mark.parametrize("other", ["values", "rank", "pin", "ties"])
def test_an_adapter_that_is_not_alike_is_classified(material: Material, other: str) -> None:
    examiner = Examiner(material.base)
    inspection, submission = sent(material.override if other == "values" else material.rank4)
    examiner.examine(inspection, PATH, submission)
    if other == "rank":
        inspection, submission = sent(material.rank8)
    if other == "pin":
        inspection, submission = sent(material.rank4, PARENT)
    with mock.patch.object(examining, "classify", side_effect=Invalid("asked")), pytest.raises(Invalid, match="asked"):
        examiner.examine(inspection, PATH, submission, untied=other == "ties")


def test_a_refused_adapter_is_refused_again(material: Material) -> None:
    examiner = Examiner(material.base)
    inspection, submission = sent(replace(material.rank4, config=material.rank4.config | {"r": 5}))
    for _ in range(2):
        with pytest.raises(Invalid, match="rank 5"):
            examiner.check_shapes(submission, inspection.header)
        with pytest.raises(Invalid, match="rank 5"):
            examiner.examine(inspection, PATH, submission)


def test_who_changes_a_record_changes_no_other(material: Material) -> None:
    examiner = Examiner(material.base)

    def examine() -> Examined:
        inspection, submission = sent(material.rank4)
        return examiner.examine(inspection, PATH, submission)

    first, expected = examine(), examine()
    first.config["target_modules"].append("lm_head")
    first.summary.ranks.append(99)
    assert examine() == expected


def test_no_more_is_kept_than_said(material: Material) -> None:
    examiner = Examiner(material.base)
    inspection, submission = sent(material.rank2)
    for alpha in range(1, KEPT + 10):
        examiner.examine(inspection, PATH, replace(submission, config=submission.config | {"lora_alpha": alpha}))
    assert len(examiner._known) == KEPT
    large = replace(submission, config=submission.config | {"rank_pattern": {"x" * examining.KEPT_BYTES: 2}})
    before = dict(examiner._known)
    examiner.check_shapes(large, inspection.header)
    assert dict(examiner._known) == before
