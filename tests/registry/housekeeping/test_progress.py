"""Verifying, collecting, exporting and importing tell how far they are, to the last byte."""

from datetime import timedelta
from pathlib import Path

import pytest

from loratree_registry.housekeeping.collecting import collect
from loratree_registry.housekeeping.exports.exporting import export
from loratree_registry.housekeeping.exports.importing import import_
from loratree_registry.housekeeping.verifying import Sample, verify
from tests.registry.conftest import Build
from tests.registry.housed import House
from tests.registry.material import Material, publish
from tests.steps import Steps

KINDS = [("sqlite", "local"), ("postgresql", "s3")]


@pytest.fixture(params=KINDS, ids="-".join)
def house(request: pytest.FixtureRequest, build: Build, material: Material) -> House:
    """Three versions, and two blobs that nothing needs."""
    house = build(*request.param)
    house.registry.add_base("tiny", material.base)
    for number, adapter in enumerate((material.rank8, material.rank4, material.rank2, material.rank8.variant(1))):
        publish(house.registry, f"tiny/n{number}", adapter, "base")
    publish(house.registry, "tiny/gone", material.rank8.variant(2), "base")
    for ref in ("tiny/gone@1", "tiny/n3@1"):
        house.registry.delete(ref, reason="unused")
    return house


def test_verifying_counts_every_byte_that_it_reads(house: House) -> None:
    steps = Steps()
    found = verify(house.storage, adapters=True, progress=steps)
    assert steps.ended == {
        "reading the stored files": (found.bytes, found.bytes, "bytes"),
        "checking adapters": (3, 3, "versions"),
    }
    sampled = Steps()
    few = verify(house.storage, sample=Sample(count=2), progress=sampled)
    assert sampled.ended == {"reading the stored files": (few.bytes, few.bytes, "bytes")}
    assert 0 < few.bytes < found.bytes


def test_collecting_counts_the_files_that_it_removes(house: House) -> None:
    steps = Steps()
    removed = list(collect(house.storage, house.settings.home / "uploads", grace=timedelta(0), progress=steps))
    assert len(removed) == 2
    assert steps.ended["removing"] == (2, 2, "files")
    assert "looking through the stored files" in steps.ended


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_an_export_and_an_import_count_the_same_bytes(house: House, build: Build, name: str, tmp_path: Path) -> None:
    out, steps = tmp_path / name, Steps()
    size = export(house.storage, None, out, progress=steps).bytes
    assert steps.ended["copying the stored files"] == (size, size, "bytes")
    assert steps.unfinished() == []
    steps, target = Steps(), build()
    assert import_(target.storage, out, progress=steps).bytes == size
    assert steps.ended["storing the files"] == (size, size, "bytes")
    assert next(iter(steps.ended)) == "checking bases"
    assert list(steps.ended)[-1] == "adding events"
    assert steps.unfinished() == []
    again = Steps()
    import_(target.storage, out, progress=again)
    assert again.unfinished() == []
