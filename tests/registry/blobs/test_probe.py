"""What is said of a store after trying it."""

from pathlib import Path

import pytest

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.probe import Check, probe
from loratree_registry.blobs.s3.store import S3BlobStore

from .conftest import Held, HeldInS3
from .test_blob_contract import CONTENT, put


def answers(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.ok for check in checks}


def says(checks: list[Check], name: str) -> str:
    [said] = [check.says for check in checks if check.name == name]
    return said


def test_trying_a_store_leaves_it_as_it_was(held: Held) -> None:
    put(held, CONTENT)
    before = held.names()
    assert all(check.says for check in probe(held.store))
    assert held.names() == before


def test_a_folder_of_ones_own_does_everything(tmp_path: Path) -> None:
    checks = probe(LocalBlobStore(tmp_path / "not" / "there"))
    assert answers(checks) == dict.fromkeys(("writable", "private", "fsync", "rename", "free space"), True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_may_read_is_told_with_its_remedy(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert "has mode 0755, so others may read it: chmod 700" in says(probe(LocalBlobStore(tmp_path)), "private")


def test_a_folder_that_cannot_be_written_is_the_only_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    [check] = probe(LocalBlobStore(tmp_path / "file" / "blobs"))
    assert (check.name, check.ok) == ("writable", False)
    assert "Not a directory" in check.says


def test_blobs_and_temporary_files_on_two_disks_are_told(tmp_path: Path) -> None:
    (tmp_path / "tmp").symlink_to("/proc")
    assert "on two file systems" in says(probe(LocalBlobStore(tmp_path)), "rename")


def test_a_nearly_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loratree_registry.blobs.probe._ROOM", 10**18)
    assert "set LORATREE_BLOBS" in says(probe(LocalBlobStore(tmp_path)), "free space")


def test_what_a_server_honours_is_told(s3_held: HeldInS3) -> None:
    found = answers(probe(s3_held.store))
    for needed in (
        "reachable",
        "listing",
        "multipart",
        "copies",
        "conditional writes",
        "presigned URLs",
        "ranges",
        "clock",
        "deleting",
    ):
        assert found[needed] is True


def test_a_wrong_checksum_that_is_accepted_is_no_danger_and_told(moto_held: HeldInS3) -> None:
    said = says(probe(moto_held.store), "checksums")
    assert said == (
        "a wrong ChecksumSHA256 is accepted; loratree does not rely on it: it reads back and hashes what is stored"
    )


def test_a_bucket_that_does_not_exist_is_the_only_check(moto_held: HeldInS3) -> None:
    store = S3BlobStore("nowhere", endpoint=moto_held.server.endpoint)
    [check] = probe(store)
    store.close()
    assert (check.name, check.ok) == ("reachable", False)
    assert "does not exist: create the bucket" in check.says


def test_urls_that_lead_elsewhere_cannot_be_told_and_are_not_shown(moto_held: HeldInS3) -> None:
    store = S3BlobStore("adapters", endpoint=moto_held.server.endpoint, public_endpoint="http://127.0.0.1:9")
    [check] = [check for check in probe(store) if check.name == "presigned URLs"]
    store.close()
    assert check.ok is None
    assert "X-Amz-Signature" not in check.says
