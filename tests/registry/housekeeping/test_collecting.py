"""Collecting removes only unused blobs and uploads, and continues after a kill."""

import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pytest
from sqlalchemy import text

from loratree_registry.blobs.store import PART, DirectStore
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.times import now
from loratree_registry.database import queries
from loratree_registry.database.engine import reading, writing
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.embedded.storage import Storage as Opened
from loratree_registry.embedded.storage import open_storage
from loratree_registry.errors import Conflict, NotUploaded, Unavailable
from loratree_registry.housekeeping.collecting import UPLOAD_AGE, Collected, collect
from loratree_registry.settings import Settings
from loratree_registry.workspace.publish import publish_directory
from tests.registry.conftest import Storage
from tests.registry.fresh import open_fresh
from tests.registry.material import WEIGHTS, Adapter, Material, publish, sha256

MED, LAW = "tiny/medicine", "tiny/law"
NOW, DAY = timedelta(0), timedelta(days=1)


@dataclass(frozen=True)
class Kept:
    """A registry with the base `tiny`, its settings and its storage."""

    settings: Settings
    registry: EmbeddedRegistry
    storage: Opened

    def collect(self, grace: timedelta = NOW, *, dry_run: bool = False) -> list[Collected]:
        return list(collect(self.storage, self.settings.home / "uploads", grace=grace, dry_run=dry_run))

    def list_blobs(self) -> set[str]:
        return {blob.digest for blob in self.storage.blobs.list_blobs()}

    def rows(self) -> dict[str, str]:
        with reading(self.storage.engine) as connection:
            return {row.sha256: row.state for row in connection.execute(text("SELECT sha256, state FROM blobs"))}

    def run(self, statement: str) -> None:
        with writing(self.storage.engine) as connection:
            connection.execute(text(statement))

    def upload(self, content: bytes) -> str:
        self.registry.upload(io.BytesIO(content), sha256=sha256(content), size=len(content))
        return sha256(content)


@pytest.fixture(params=["sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, storage: Storage, material: Material) -> Iterator[Kept]:
    with ExitStack() as opened:
        environment = {}
        if request.param == "postgresql":
            environment["LORATREE_DATABASE"] = opened.enter_context(storage.postgresql().migrated())
        settings = storage.settings(**environment)
        registry = open_fresh(settings)
        opened.callback(registry.close)
        registry.add_base("tiny", material.base)
        yield Kept(settings, registry, opened.enter_context(open_storage(settings)))


def test_the_bytes_of_a_deleted_version_go_after_its_grace_unless_another_version_has_them(
    kept: Kept, material: Material
) -> None:
    shared, alone = material.rank4, material.rank8
    for path, adapter in ((MED, shared), (LAW, shared), (MED, alone)):
        publish(kept.registry, path, adapter, "base")
    kept.run("UPDATE blobs SET touched_at = '2020-01-01'")
    for number in (1, 2):
        kept.registry.delete(f"{MED}@{number}", reason="old")
    assert kept.collect(DAY) == []  # deleting began a grace
    assert kept.collect() == [Collected("blob", alone.file.sha256, alone.file.size)]
    assert kept.list_blobs() == {shared.file.sha256} == set(kept.rows())
    with kept.registry.open_file(LAW, WEIGHTS) as stream:
        assert stream.read() == shared.weights
    assert publish(kept.registry, MED, alone, "base").version.number == 3


def test_what_versions_and_bases_refer_to_stays_however_old(kept: Kept, material: Material) -> None:
    publish(kept.registry, MED, material.rank4, "base")
    shard = kept.upload(b"a shard of the base")
    with writing(kept.storage.engine) as connection:
        base = queries.bases.find_base(connection, "tiny")
        assert base is not None
        queries.bases.insert_base_files(connection, base.id, [FileDigest("model.safetensors", 19, shard)])
    kept.run("UPDATE blobs SET touched_at = '2020-01-01'")
    assert kept.collect() == []
    assert kept.list_blobs() == {material.rank4.file.sha256, shard}


def test_a_dry_run_tells_what_would_go_and_changes_nothing(kept: Kept) -> None:
    idle = kept.upload(b"never published")
    content = b"without a row"
    kept.storage.blobs.put(sha256(content), len(content), io.BytesIO(content))
    rows, held = kept.rows(), kept.list_blobs()
    would = kept.collect(dry_run=True)
    assert {(one.name, one.size) for one in would} == {(idle, 15), (sha256(content), 13)}
    assert (kept.rows(), kept.list_blobs()) == (rows, held)
    assert kept.collect(DAY, dry_run=True) == kept.collect(DAY) == []
    assert sorted(kept.collect(), key=str) == sorted(would, key=str)
    assert (kept.rows(), kept.list_blobs()) == ({}, set())


def test_a_kill_between_the_bytes_and_the_row_is_made_good_by_the_next_run(kept: Kept) -> None:
    gone = kept.upload(b"never published")
    with writing(kept.storage.engine) as connection:
        queries.collecting.condemn(connection, [gone], before=now())
    kept.storage.blobs.delete(gone)  # here the first run ended
    assert kept.rows() == {gone: "condemned"}
    assert [one.name for one in kept.collect(DAY)] == [gone]
    assert kept.rows() == {}


def test_a_lease_saves_condemned_bytes_which_are_then_sent_and_read_again(kept: Kept) -> None:
    digest = kept.upload(b"never published")
    with writing(kept.storage.engine) as connection:
        queries.collecting.condemn(connection, [digest], before=now())
        assert not queries.blobs.hold_blobs(connection, [digest])
    kept.storage.blobs.delete(digest)
    assert kept.upload(b"never published") == digest
    assert kept.rows() == {digest: "stored"}
    assert kept.collect(DAY) == []
    assert kept.list_blobs() == {digest}


def test_bytes_that_were_collected_while_they_were_sent_are_not_recorded_under_anothers_lease(kept: Kept) -> None:
    content = b"sent by two"
    digest = sha256(content)
    with writing(kept.storage.engine) as connection:
        first = queries.blobs.lease_blob(connection, digest, len(content))
    kept.storage.blobs.put(digest, len(content), io.BytesIO(content))
    assert [one.name for one in kept.collect()] == [digest]
    with writing(kept.storage.engine) as connection:
        second = queries.blobs.lease_blob(connection, digest, len(content))  # of somebody who has put nothing yet
        assert not queries.blobs.record_stored(connection, digest, len(content), first)
        assert queries.blobs.lease_blob(connection, digest, len(content)) == second != first
    assert kept.rows() == {digest: "expected"}


def test_bytes_that_a_publisher_holds_are_not_condemned(storage: Storage, material: Material) -> None:
    """Test PostgreSQL only: its collector skips a locked row, while SQLite allows one writer at a time."""
    with storage.postgresql().migrated() as url:
        settings = storage.settings(LORATREE_DATABASE=url)
        registry = open_fresh(settings)
        registry.add_base("tiny", material.base)
        with open_storage(settings) as opened:
            kept = Kept(settings, registry, opened)
            digest = kept.upload(b"about to be published")
            with writing(opened.engine) as publisher:
                assert queries.blobs.hold_blobs(publisher, [digest])
                assert kept.collect() == []
            assert kept.rows() == {digest: "stored"}
            assert [one.name for one in kept.collect()] == [digest]
        registry.close()


def test_two_collectors_at_once_remove_all_and_nothing_else(kept: Kept, material: Material) -> None:
    publish(kept.registry, MED, material.rank4, "base")
    digests = {kept.upload(b"%d" % number) for number in range(30)}
    with ThreadPoolExecutor(2) as threads:
        runs = list(threads.map(lambda _: kept.collect(), range(2)))
    assert {one.name for run in runs for one in run} == digests  # one may list what the other has just removed
    assert kept.list_blobs() == set(kept.rows()) == {material.rank4.file.sha256}


def test_what_uploads_left_goes_after_an_hour_at_least(kept: Kept) -> None:
    uploads, temporary = kept.settings.home / "uploads", kept.settings.home / "blobs" / "tmp"
    long_ago = (datetime.now(UTC) - UPLOAD_AGE - timedelta(minutes=1)).timestamp()
    for folder in (uploads, temporary):
        folder.mkdir(parents=True)
    for name in ("old", "new"):
        (uploads / name).mkdir()
        (temporary / name).write_bytes(b"half an upload")
    for path in (uploads / "old", temporary / "old"):
        os.utime(path, (long_ago, long_ago))
    assert kept.collect(DAY) == []
    told = [Collected("upload", "tmp/old"), Collected("upload", "uploads/old")]
    assert kept.collect(dry_run=True) == told
    assert kept.collect() == told
    assert [path.name for folder in (uploads, temporary) for path in folder.iterdir()] == ["new", "new"]


def test_transfers_to_a_store_are_given_up_with_their_rows(storage: Storage) -> None:
    settings = storage.settings(**storage.bucket())
    with open_storage(settings) as opened:
        store = opened.blobs
        assert isinstance(store, DirectStore)
        content = b"sent by a client itself"
        transfer = store.begin("a" * 32, sha256(content), len(content))
        with writing(opened.engine) as connection:
            queries.uploads.insert_upload(connection, transfer)
        collected = lambda: list(collect(opened, settings.home / "uploads", grace=NOW))  # noqa: E731
        assert collected() == []
        with writing(opened.engine) as connection:
            connection.execute(text("UPDATE uploads SET touched_at = '2020-01-01 00:00:00.000000'"))
        assert collected() == [Collected("upload", f"uploads/{transfer.id}")]
        with reading(opened.engine) as connection:
            assert queries.uploads.find_upload(connection, transfer.id) is None


def test_an_upload_that_somebody_goes_on_with_stays_however_long_ago_it_began(storage: Storage) -> None:
    settings = storage.settings(**storage.bucket())
    with ExitStack() as opened:
        registry = open_fresh(settings)
        opened.callback(registry.close)
        kept = Kept(settings, registry, opened.enter_context(open_storage(settings)))
        direct = registry.direct
        assert direct
        upload = direct.begin(sha256(b""), PART + 1)

        def complete() -> None:
            with pytest.raises(Conflict, match="misses the parts 1; 2"):
                direct.complete(upload)

        for go_on in (lambda: direct.part(upload.id, 1), lambda: direct.begin(upload.sha256, upload.size), complete):
            kept.run(f"UPDATE uploads SET touched_at = '{now() - 2 * UPLOAD_AGE:%Y-%m-%d %H:%M:%S.%f}'")
            go_on()
            assert kept.collect(timedelta(minutes=1)) == []
        assert direct.find(upload.id).id == upload.id
        much_later = datetime.now(UTC) + timedelta(days=1)
        names = [f"uploads/{upload.id}"]
        assert kept.storage.blobs.sweep(before=much_later, keep=names) == []  # as while it is hashed for hours
        assert kept.storage.blobs.sweep(before=much_later) == names


def test_what_cannot_be_removed_is_told_at_the_end_and_keeps_nothing_else(kept: Kept) -> None:
    locked, *others = sorted(kept.upload(bytes([number])) for number in range(3))
    blobs = kept.settings.home / "blobs"
    path = blobs / "sha256" / locked[7:9] / locked[7:]
    path.unlink()
    for folder in (path, blobs / "tmp" / "left"):  # neither can be unlinked
        folder.mkdir()
        os.utime(folder, (0, 0))
    for left in (others, []):
        removed = collect(kept.storage, kept.settings.home / "uploads", grace=NOW)
        assert [next(removed).name for _ in left] == left
        with pytest.raises(
            Unavailable, match=rf"could not be removed, .*in the blob store; {locked}; .* cannot be used"
        ):
            next(removed)
    assert kept.rows() == {locked: "condemned"}


class Unlucky(EmbeddedRegistry):
    """A registry with a collector that removes the bytes right after each of the first `times` uploads."""

    kept: Kept
    times: int

    def upload(self, stream: BinaryIO, *, sha256: str, size: int) -> None:
        super().upload(stream, sha256=sha256, size=size)
        if self.times:
            self.times -= 1
            assert self.kept.collect()


@pytest.mark.parametrize(("times", "published"), [(1, True), (2, True), (3, False)])
def test_publishing_a_folder_sends_again_what_was_collected_meanwhile(
    kept: Kept, material: Material, tmp_path: Path, times: int, published: bool
) -> None:
    registry = Unlucky(kept.storage.engine, kept.storage.blobs)
    registry.kept, registry.times = kept, times
    folder = written(material.rank4, tmp_path / "adapter")
    if published:
        done = publish_directory(registry, folder, MED, parent="base", home=tmp_path)
        assert (done.published.created, done.published.version.number) == (True, 1)
        assert kept.list_blobs() == {material.rank4.file.sha256}
    else:
        with pytest.raises(NotUploaded, match=r"these files are not uploaded: .*; upload them, then publish"):
            publish_directory(registry, folder, MED, parent="base", home=tmp_path)
        assert kept.registry.descendants("tiny").items == []


def written(adapter: Adapter, folder: Path) -> Path:
    """Write the adapter to `folder` as PEFT does."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(adapter.config))
    (folder / WEIGHTS).write_bytes(adapter.weights)
    return folder
