"""Verifying names every damaged blob and its users, on each database and store; pull refuses damaged bytes."""

import io
import json
import struct
from pathlib import Path

import pytest
from sqlalchemy import text

from loratree_registry.core.digests import FileDigest, content_digest, version_digest
from loratree_registry.database.engine import writing
from loratree_registry.embedded.storage import open_storage
from loratree_registry.errors import Corrupt, Invalid, NotFound, Unavailable
from loratree_registry.housekeeping.verifying import NAMED, Sample, verify
from loratree_registry.settings import Settings
from loratree_registry.workspace.fetch import pull
from tests.registry.conftest import Build
from tests.registry.housed import House
from tests.registry.material import WEIGHTS, Material, publish, sha256

KINDS = [("sqlite", "local"), ("sqlite", "s3"), ("postgresql", "local")]


def grown(house: House, material: Material) -> House:
    """Build five versions, two of which share a blob."""
    registry = house.registry
    registry.add_base("tiny", material.base)
    publish(registry, "tiny/law", material.rank8)
    publish(registry, "tiny/law/tax", material.rank4)
    publish(registry, "tiny/law/tax", material.rank4.variant(1))
    publish(registry, "tiny/medicine", material.rank8)
    publish(registry, "tiny/medicine/heart", material.rank2)
    return house


@pytest.mark.parametrize(("database", "blobs"), KINDS)
def test_one_flipped_bit_is_found_with_all_that_it_touches_and_pull_refuses_it(
    build: Build, material: Material, database: str, blobs: str, tmp_path: Path
) -> None:
    house = grown(build(database, blobs), material)
    assert verify(house.storage).sound
    house.flip(material.rank8.file.sha256)
    found = verify(house.storage)
    (damage,) = found.damaged
    assert (damage.sha256, damage.count, damage.versions) == (
        material.rank8.file.sha256,
        2,
        ["tiny/law@1", "tiny/medicine@1"],
    )
    assert damage.problem.startswith("holds other bytes, sha256:")
    assert (found.stored, found.read, found.versions, found.problems) == (4, 4, 5, [])
    with pytest.raises(Corrupt, match=r"tiny/law@1\) is damaged where the registry stores it"):
        pull(house.registry, house.settings.home, "tiny/law@1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("database", "blobs"), KINDS)
def test_a_missing_blob_and_one_of_another_size_are_found(
    build: Build, material: Material, database: str, blobs: str
) -> None:
    house = grown(build(database, blobs), material)
    house.storage.blobs.delete(material.rank4.file.sha256)
    house.overwrite(material.rank2.file.sha256, b"short")
    assert {(found.problem, *found.versions) for found in verify(house.storage).damaged} == {
        ("is missing", "tiny/law/tax@1"),
        ("has 5 bytes", "tiny/medicine/heart@1"),
    }


def test_blobs_that_cannot_be_read_are_found_and_the_others_still_checked(build: Build, material: Material) -> None:
    house = grown(build(), material)
    folder, failing = (
        house.settings.home / "blobs/sha256" / file.file.sha256[7:9] / file.file.sha256[7:]
        for file in (material.rank4, material.rank2)
    )
    folder.unlink()
    folder.mkdir()
    failing.unlink()
    failing.symlink_to("/proc/self/mem")  # to read its beginning is an input/output error
    house.flip(material.rank8.file.sha256)
    found = verify(house.storage)
    problems = {damage.versions[0]: damage.problem for damage in found.damaged}
    assert (found.read, len(problems)) == (4, 3)
    assert "cannot be read" in problems["tiny/law/tax@1"]
    assert "Is a directory" in problems["tiny/law/tax@1"]
    assert "cannot be read" in problems["tiny/medicine/heart@1"]
    assert "Input/output error" in problems["tiny/medicine/heart@1"]
    assert "holds other bytes" in problems["tiny/law@1"]


def test_a_store_that_does_not_answer_is_no_damage(build: Build, material: Material) -> None:
    house = grown(build(), material)
    root = house.settings.home / "blobs"
    root.rename(root.with_name("moved"))
    root.write_bytes(b"")
    with pytest.raises(Unavailable, match="is no folder, or a part of its path is none"):
        verify(house.storage)


def test_a_subtree_or_a_chain_alone_is_verified(build: Build, material: Material) -> None:
    house = grown(build(), material)
    house.flip(material.rank4.file.sha256)
    assert verify(house.storage, "tiny/medicine").sound
    assert verify(house.storage, "tiny/law/tax@2").sound
    assert [found.versions for found in verify(house.storage, "tiny/law").damaged] == [["tiny/law/tax@1"]]
    assert not verify(house.storage, "tiny/law/tax@1").sound
    house.flip(material.rank8.file.sha256)
    assert [found.versions[0] for found in verify(house.storage, "tiny/law/tax@2").damaged] == ["tiny/law@1"]
    with pytest.raises(NotFound, match="tiny/physics is not known"):
        verify(house.storage, "tiny/physics")


def test_a_damaged_blob_that_nothing_refers_to_is_told_too(build: Build, material: Material) -> None:
    house = build()
    file = material.rank2.file
    house.registry.upload(io.BytesIO(material.rank2.weights), sha256=file.sha256, size=file.size)
    house.flip(material.rank2.file.sha256)
    (damage,) = verify(house.storage).damaged
    assert (damage.versions, damage.count, damage.touches) == ([], 0, "nothing")


def test_of_many_versions_that_share_a_blob_some_are_named_and_all_counted(build: Build, material: Material) -> None:
    house = grown(build(), material)
    with writing(house.storage.engine) as connection:
        connection.execute(text(MANY_VERSIONS), {"many": NAMED + 200})
        connection.execute(text(THEIR_FILES))
    house.flip(material.rank2.file.sha256)
    (damage,) = verify(house.storage).damaged
    assert (damage.count, len(damage.versions)) == (NAMED + 201, NAMED)
    assert damage.touches.endswith(f", and {NAMED + 181} more versions")


def test_a_sample_is_the_same_for_the_same_seed_and_never_empty(build: Build, material: Material) -> None:
    house = grown(build(), material)
    assert verify(house.storage, sample=Sample(count=2)).read == 2
    assert verify(house.storage, sample=Sample(share=0.01)).read == 1
    assert (
        verify(house.storage, sample=Sample(share=1.0)).read == verify(house.storage, sample=Sample(count=99)).read == 4
    )
    assert Sample(count=3, seed=1).of(100) == Sample(count=3, seed=1).of(100) != Sample(count=3, seed=2).of(100)


CONTRADICTIONS = {
    "UPDATE versions SET digest = 'sha256:' || '{zeros}' WHERE id = 2": "tiny/law/tax@1 has the digest sha256:000",
    "UPDATE versions SET content = 'sha256:' || '{zeros}' WHERE id = 2": "tiny/law/tax@1 has the content digest",
    "UPDATE versions SET pin_id = 1 WHERE id = 5": "tiny/medicine/heart@1 is pinned to tiny/law@1, which is not above",
    "UPDATE bases SET digest = 'sha256:' || '{zeros}'": "the base tiny has the digest sha256:000",
    "UPDATE nodes SET last_number = 1 WHERE path = 'tiny/law/tax'": "tiny/law/tax@2 has a number that its node has not",
    "UPDATE nodes SET parent_id = 2 WHERE path = 'tiny/medicine'": "the node tiny/medicine has the parent tiny/law",
    "UPDATE blobs SET state = 'condemned' WHERE sha256 = '{rank4}'": "tiny/law/tax@1 needs {rank4}, which is recorded",
    "UPDATE version_files SET size = 1 WHERE version_id = 2": "tiny/law/tax@1 needs {rank4}, which is recorded",
}


@pytest.mark.parametrize("statement", CONTRADICTIONS)
def test_a_row_that_was_changed_behind_the_registry_is_named(build: Build, material: Material, statement: str) -> None:
    house = grown(build(), material)
    names = {"zeros": "0" * 64, "rank4": material.rank4.file.sha256}
    with writing(house.storage.engine) as connection:
        connection.execute(text(statement.format(**names)))
    problems = verify(house.storage).problems
    assert any(problem.startswith(CONTRADICTIONS[statement].format(**names)) for problem in problems), problems


BAD_ADAPTERS = {
    "a pickle": (lambda _: b"\x80\x04\x95" + bytes(300), "is not a safetensors file"),
    "NaN": (lambda content: content[:-4] + struct.pack("<f", float("nan")), "values that are not finite"),
    "another base's": (lambda content: content.replace(b".q_proj.", b".x_proj."), "cannot be published"),
}


@pytest.mark.parametrize("name", BAD_ADAPTERS)
def test_bytes_that_are_no_adapter_are_found_only_if_adapters_are_checked(
    build: Build, material: Material, name: str
) -> None:
    """As a registry holds them that imported them with an earlier release: stored whole, with right digests."""
    house = grown(build(), material)
    change, sentence = BAD_ADAPTERS[name]
    bad = change(material.rank4.weights)
    file = FileDigest(WEIGHTS, len(bad), sha256(bad))
    house.registry.upload(io.BytesIO(bad), sha256=file.sha256, size=file.size)
    with writing(house.storage.engine) as connection:
        row = connection.execute(text("SELECT config, pin_id FROM versions WHERE id = 2")).one()
        config = json.loads(row.config) if isinstance(row.config, str) else row.config
        pin = connection.scalar(text(f"SELECT digest FROM versions WHERE id = {row.pin_id}"))
        values = {
            "content": content_digest(config, [file]),
            "digest": version_digest(base_digest=material.base.digest, pin_digest=pin, config=config, files=[file]),
        } | {"sha256": file.sha256, "size": file.size}
        connection.execute(
            text("UPDATE versions SET content = :content, digest = :digest, size = :size WHERE id = 2"), values
        )
        connection.execute(text("UPDATE version_files SET sha256 = :sha256, size = :size WHERE version_id = 2"), values)
    assert verify(house.storage, "tiny/law/tax@1").sound
    for ref in (None, "tiny/law/tax", "tiny/law/tax@1"):
        [problem] = [p for p in verify(house.storage, ref, adapters=True).problems if "publish would take" in p]
        assert problem.startswith("tiny/law/tax@1 is not what publish would take: ")
        assert sentence in problem
    assert verify(house.storage, "tiny/medicine", adapters=True).sound


def test_sound_adapters_pass_and_a_summary_that_says_something_else_does_not(build: Build, material: Material) -> None:
    house = grown(build(), material)
    assert verify(house.storage, adapters=True).sound
    with writing(house.storage.engine) as connection:
        summary = connection.scalar(text("SELECT summary FROM versions WHERE id = 2"))
        changed = (json.loads(summary) if isinstance(summary, str) else summary) | {"ranks": []}
        connection.execute(text("UPDATE versions SET summary = :it WHERE id = 2"), {"it": json.dumps(changed)})
    assert verify(house.storage).sound
    [problem] = verify(house.storage, adapters=True).problems
    assert "its summary says something else than its files: ranks [] for [4]" in problem


def test_an_alias_of_a_withdrawn_version_and_a_living_tombstone_are_named(build: Build, material: Material) -> None:
    house = grown(build(), material)
    house.registry.set_alias("tiny/law/tax", "stable", version=1, expected=None)
    with writing(house.storage.engine) as connection:
        connection.execute(text("UPDATE versions SET withdrawn_at = created_at, withdrawn_reason = 'old' WHERE id = 2"))
        connection.execute(
            text(
                "INSERT INTO tombstones (node_id, number, digest, content, created_at, reason, deleted_at) "
                "SELECT node_id, number, digest, content, created_at, 'gone', created_at FROM versions WHERE id = 3"
            )
        )
    assert verify(house.storage, "tiny/law").problems == [
        "tiny/law/tax@2 was deleted and is still there",
        "the alias tiny/law/tax@stable names version 1, which is withdrawn",
    ]
    assert verify(house.storage, "tiny/medicine").sound


def test_under_a_url_it_says_where_to_run_it(tmp_path: Path) -> None:
    settings = Settings.from_environment({"LORATREE_HOME": str(tmp_path), "LORATREE_URL": "http://127.0.0.1:1"})
    with pytest.raises(Invalid, match="LORATREE_URL names a registry that is served"), open_storage(settings):
        pass


MANY_VERSIONS = f"""
WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :many)
INSERT INTO versions (node_id, base_id, number, digest, content, pin_id, pin_found, config, summary, size, created_at)
SELECT node_id, base_id, number + n, 'sha256:' || substr('{"0" * 64}' || n, -64), content, pin_id,
    pin_found, config, summary, size, created_at FROM versions, n WHERE id = 5
"""
THEIR_FILES = f"""
INSERT INTO version_files (version_id, name, size, sha256)
SELECT versions.id, '{WEIGHTS}', file.size, file.sha256 FROM versions, version_files file
WHERE versions.id > 5 AND file.version_id = 5
"""
