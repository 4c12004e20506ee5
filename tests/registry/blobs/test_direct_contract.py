"""What a store promises that clients send to and read from themselves, by presigned URLs."""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import BinaryIO
from uuid import uuid4

import httpx
import pytest

from loratree_registry.blobs import store
from loratree_registry.blobs.s3 import bucket as s3_bucket
from loratree_registry.blobs.s3 import staged as s3_staged
from loratree_registry.blobs.s3.bucket import Bucket
from loratree_registry.blobs.s3.store import S3BlobStore
from loratree_registry.blobs.store import DirectStore, Transfer
from loratree_registry.errors import Conflict, Invalid, NotFound
from tests import ceph

from .conftest import BUCKET, PREFIX, Held, HeldInS3
from .test_blob_contract import CONTENT, FAR, digest_of, refuse

MIB = 1024**2
LARGE = os.urandom(11 * MIB + 5)  # three parts of 5 MiB, the smallest that S3 takes


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (store, s3_staged):
        monkeypatch.setattr(module, "PART", 5 * MIB)


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


def begin(held: HeldInS3, content: bytes) -> Transfer:
    return held.store.begin(uuid4().hex, digest_of(content), len(content))


def send(held: HeldInS3, client: httpx.Client, transfer: Transfer, number: int, content: bytes) -> httpx.Response:
    """Sends one part as a client does: its bytes of the content, to the URL, with the headers."""
    target = held.store.target(transfer, number)
    part = content[(number - 1) * store.PART : number * store.PART]
    return client.put(target.url, headers=target.headers, content=part)


def arrive(held: HeldInS3, client: httpx.Client, content: bytes) -> Transfer:
    transfer = begin(held, content)
    for number in range(1, transfer.parts + 1):
        assert send(held, client, transfer, number, content).status_code == 200
    return transfer


def read(held: HeldInS3, content: bytes) -> bytes:
    with held.store.open(digest_of(content)) as stream:
        return stream.read()


def blob(content: bytes) -> str:
    digest = digest_of(content)
    return f"sha256/{digest[7:9]}/{digest[7:]}"


def test_the_store_in_s3_is_one_that_clients_reach(s3_held: HeldInS3) -> None:
    assert isinstance(s3_held.store, DirectStore)


def test_a_folder_is_no_store_that_clients_reach(local_held: Held) -> None:
    assert not isinstance(local_held.store, DirectStore)


def test_blobs_are_listed_page_by_page(s3_held: HeldInS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_bucket, "_PAGE", 2)
    contents = [bytes([number]) for number in range(5)]
    for content in contents:
        s3_held.overwrite(digest_of(content), content)
    digests = sorted(map(digest_of, contents))
    assert [blob.digest for blob in s3_held.store.list_blobs()] == digests
    assert [blob.digest for blob in s3_held.store.list_blobs(after=digests[0])] == digests[1:]


@pytest.mark.parametrize("content", [b"", CONTENT])
def test_what_a_client_sends_becomes_a_blob_and_nothing_else_stays(
    s3_held: HeldInS3, client: httpx.Client, content: bytes
) -> None:
    transfer = arrive(s3_held, client, content)
    assert (transfer.parts, s3_held.store.arrived(transfer)) == (1, {1})
    assert s3_held.store.size(digest_of(content)) is None
    s3_held.store.accept(transfer)
    assert (read(s3_held, content), s3_held.names()) == (content, [blob(content)])


def test_a_client_reads_a_blob_and_a_range_of_it_by_its_link(s3_held: HeldInS3, client: httpx.Client) -> None:
    s3_held.store.accept(arrive(s3_held, client, CONTENT))
    link = s3_held.store.link(digest_of(CONTENT))
    assert client.get(link).content == CONTENT
    part = client.get(link, headers={"Range": "bytes=4-8"})
    assert (part.status_code, part.content) == (206, CONTENT[4:9])


@pytest.mark.usefixtures("small_parts")
def test_several_parts_arrive_in_any_order_and_are_one_blob(s3_held: HeldInS3, client: httpx.Client) -> None:
    transfer = begin(s3_held, LARGE)
    for number, arrived in ((3, {3}), (1, {1, 3}), (2, {1, 2, 3})):
        send(s3_held, client, transfer, number, LARGE)
        assert s3_held.store.arrived(transfer) == arrived
    s3_held.store.accept(transfer)
    assert read(s3_held, LARGE) == LARGE
    assert (s3_held.names(), s3_held.uploads()) == ([blob(LARGE)], [])


@pytest.mark.usefixtures("small_parts")
def test_a_missing_part_is_named_and_the_transfer_goes_on(s3_held: HeldInS3, client: httpx.Client) -> None:
    transfer = begin(s3_held, LARGE)
    send(s3_held, client, transfer, 2, LARGE)
    with pytest.raises(Conflict, match=rf"{transfer.id} misses the parts 1; 3: send them"):
        s3_held.store.accept(transfer)
    for number in (1, 3):
        send(s3_held, client, transfer, number, LARGE)
    s3_held.store.accept(transfer)
    assert read(s3_held, LARGE) == LARGE


@pytest.mark.usefixtures("small_parts")
def test_a_part_that_is_sent_again_replaces_the_first(s3_held: HeldInS3, client: httpx.Client) -> None:
    transfer = begin(s3_held, LARGE)
    send(s3_held, client, transfer, 1, bytes(store.PART))
    for number in (1, 2, 3):
        send(s3_held, client, transfer, number, LARGE)
    s3_held.store.accept(transfer)
    assert read(s3_held, LARGE) == LARGE


@pytest.mark.usefixtures("small_parts")
def test_wrong_bytes_in_a_part_are_refused_and_gone(s3_held: HeldInS3, client: httpx.Client) -> None:
    transfer = begin(s3_held, LARGE)
    for number, content in ((1, LARGE), (2, bytes(len(LARGE))), (3, LARGE)):
        send(s3_held, client, transfer, number, content)
    with pytest.raises(Invalid, match="are others: hash the file again"):
        s3_held.store.accept(transfer)
    assert (s3_held.names(), s3_held.uploads()) == ([], [])


def test_wrong_bytes_never_become_a_blob_whether_or_not_the_server_checks_them(
    s3_held: HeldInS3, client: httpx.Client
) -> None:
    transfer = begin(s3_held, CONTENT)
    refused = send(s3_held, client, transfer, 1, CONTENT.upper()).status_code != 200
    with pytest.raises(Conflict if refused else Invalid):
        s3_held.store.accept(transfer)
    assert s3_held.names() == []


def test_nothing_sent_is_a_missing_part(s3_held: HeldInS3) -> None:
    transfer = begin(s3_held, CONTENT)
    assert s3_held.store.arrived(transfer) == set()
    with pytest.raises(Conflict, match="misses the parts 1: send them"):
        s3_held.store.accept(transfer)


def test_an_object_of_another_size_has_not_arrived_and_is_refused(s3_held: HeldInS3) -> None:
    transfer = begin(s3_held, CONTENT)
    s3_held.admin.put_object(Bucket=BUCKET, Key=f"{PREFIX}/uploads/{transfer.id}", Body=CONTENT + b"!")
    assert s3_held.store.arrived(transfer) == set()
    with pytest.raises(Invalid, match="are others"):
        s3_held.store.accept(transfer)
    assert s3_held.names() == []


def test_what_arrived_is_looked_at_as_it_is_read_back(s3_held: HeldInS3, client: httpx.Client) -> None:
    seen = []
    s3_held.store.accept(arrive(s3_held, client, CONTENT), read_back=lambda stream: seen.append(stream.read(9)))
    assert seen == [CONTENT[:9]]


def test_a_refusal_of_what_arrived_is_raised_and_nothing_is_visible(s3_held: HeldInS3, client: httpx.Client) -> None:
    transfer = arrive(s3_held, client, CONTENT)
    with pytest.raises(Conflict, match="not an adapter"):
        s3_held.store.accept(transfer, read_back=refuse)
    assert s3_held.store.size(digest_of(CONTENT)) is None


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["one part", "three parts"])
def test_a_transfer_that_was_given_up_leaves_nothing(s3_held: HeldInS3, client: httpx.Client, content: bytes) -> None:
    transfer = begin(s3_held, content)
    send(s3_held, client, transfer, 1, content)
    for _ in range(2):
        s3_held.store.give_up(transfer)
    assert (s3_held.names(), s3_held.uploads()) == ([], [])
    if transfer.multipart:
        with pytest.raises(NotFound, match=rf"{transfer.id} has ended: begin a new one"):
            s3_held.store.accept(transfer)
    else:
        with pytest.raises(Conflict, match="misses the parts 1"):
            s3_held.store.accept(transfer)


@pytest.mark.usefixtures("small_parts")
def test_parts_of_a_transfer_that_was_given_up_are_asked_for_in_vain(s3_held: HeldInS3, client: httpx.Client) -> None:
    transfer = begin(s3_held, LARGE)
    s3_held.store.give_up(transfer)
    with pytest.raises(NotFound, match=rf"{transfer.id} has ended: begin a new one"):
        s3_held.store.arrived(transfer)
    assert send(s3_held, client, transfer, 1, LARGE).is_error


def test_urls_are_good_for_a_quarter_of_an_hour(s3_held: HeldInS3) -> None:
    for url in (s3_held.store.target(begin(s3_held, CONTENT), 1).url, s3_held.store.link(digest_of(CONTENT))):
        assert "X-Amz-Expires=900&" in url


if ceph.wanted():  # moto does not look at signatures

    def test_a_url_that_has_expired_is_refused(
        ceph_held: HeldInS3, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(s3_staged, "LINK_S", -1)
        transfer = begin(ceph_held, CONTENT)
        assert send(ceph_held, client, transfer, 1, CONTENT).status_code == 403
        assert ceph_held.store.arrived(transfer) == set()

    def test_a_part_longer_than_announced_is_refused(ceph_held: HeldInS3, client: httpx.Client) -> None:
        target = ceph_held.store.target(begin(ceph_held, CONTENT), 1)
        headers = {**target.headers, "Content-Length": str(len(CONTENT) + 1)}
        assert client.put(target.url, headers=headers, content=CONTENT + b"!").status_code == 403


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["one part", "three parts"])
def test_accepting_again_after_a_kill_at_any_step_gives_the_same_blob(
    s3_held: HeldInS3, client: httpx.Client, content: bytes
) -> None:
    transfer = arrive(s3_held, client, content)
    staged = s3_staged.Staged(s3_held.store.bucket, transfer)
    staged.complete()  # and killed
    assert s3_held.store.arrived(transfer) == set(range(1, transfer.parts + 1))
    s3_held.store.put(digest_of(content), len(content), io.BytesIO(content))  # copied, and killed
    s3_held.store.accept(transfer)
    s3_held.store.accept(transfer)  # accepted, and killed before anyone was told
    assert (read(s3_held, content), s3_held.names()) == (content, [blob(content)])


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["one part", "three parts"])
def test_transfers_of_the_same_bytes_are_accepted_at_the_same_time(
    s3_held: HeldInS3, client: httpx.Client, content: bytes
) -> None:
    first, second = arrive(s3_held, client, content), arrive(s3_held, client, content)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(s3_held.store.accept, [first, second, first, second]))
    assert (read(s3_held, content), s3_held.names()) == (content, [blob(content)])


def test_a_damaged_blob_is_replaced_by_what_arrived(s3_held: HeldInS3, client: httpx.Client) -> None:
    s3_held.overwrite(digest_of(CONTENT), b"spoiled")
    s3_held.store.accept(arrive(s3_held, client, CONTENT))
    assert read(s3_held, CONTENT) == CONTENT


@pytest.mark.parametrize("number", [0, 2, -1])
def test_a_part_that_a_transfer_does_not_have_is_refused(s3_held: HeldInS3, number: int) -> None:
    with pytest.raises(NotFound, match=f"has no part {number}: expected 1 to 1"):
        s3_held.store.target(begin(s3_held, CONTENT), number)


@pytest.mark.parametrize("name", ["", "../sha256/00", "A" * 32, "0" * 31])
def test_what_is_not_an_id_never_becomes_a_name(s3_held: HeldInS3, name: str) -> None:
    with pytest.raises(Invalid, match="names no transfer"):
        s3_held.store.begin(name, digest_of(CONTENT), len(CONTENT))


def test_a_url_is_not_shown_with_the_target_that_holds_it(s3_held: HeldInS3) -> None:
    assert "http" not in repr(s3_held.store.target(begin(s3_held, CONTENT), 1))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored already"])
@pytest.mark.parametrize("content", [CONTENT, LARGE], ids=["one part", "three parts"])
def test_what_is_sent_again_while_it_is_hashed_changes_nothing(
    s3_held: HeldInS3, client: httpx.Client, content: bytes, stored: bool
) -> None:
    if stored:
        s3_held.overwrite(digest_of(content), content)
    transfer = arrive(s3_held, client, content)

    def meanwhile(stream: BinaryIO) -> None:
        assert stream.read() == content
        send(s3_held, client, transfer, 1, bytes(len(content)))

    s3_held.store.accept(transfer, read_back=meanwhile)
    assert (read(s3_held, content), s3_held.names(), s3_held.uploads()) == (content, [blob(content)], [])


@pytest.mark.parametrize("stored", [False, True], ids=["new", "stored already"])
def test_what_is_sent_again_while_it_is_copied_changes_nothing(
    s3_held: HeldInS3, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    if stored:
        s3_held.overwrite(digest_of(CONTENT), CONTENT)
    transfer = arrive(s3_held, client, CONTENT)

    copy = Bucket.copy

    def raced(bucket: Bucket, source: str, name: str, size: int) -> None:
        if name != blob(CONTENT):  # the copy that is hashed
            copy(bucket, source, name, size)
            return
        send(s3_held, client, transfer, 1, bytes(len(CONTENT)))
        copy(bucket, source, name, size)
        send(s3_held, client, transfer, 1, CONTENT)  # so that the bytes are the right ones before and after

    monkeypatch.setattr(Bucket, "copy", raced)
    s3_held.store.accept(transfer)
    assert (read(s3_held, CONTENT), s3_held.names()) == (CONTENT, [blob(CONTENT)])


@pytest.mark.usefixtures("small_parts")
def test_a_sweep_takes_what_is_old_and_tells_before_it_does(s3_held: HeldInS3, client: httpx.Client) -> None:
    single, several = arrive(s3_held, client, CONTENT), begin(s3_held, LARGE)
    send(s3_held, client, several, 1, LARGE)
    old = sorted([f"uploads/{single.id}", f"uploads/{several.id}"])
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    assert s3_held.store.sweep(before=hour_ago) == []
    assert s3_held.store.sweep(before=FAR, dry_run=True) == old
    assert (s3_held.store.arrived(single), s3_held.store.arrived(several)) == ({1}, {1})
    assert s3_held.store.sweep(before=FAR) == old
    assert (s3_held.names(), s3_held.uploads()) == ([], [])


def test_a_sweep_leaves_what_others_keep_in_the_bucket(s3_held: HeldInS3) -> None:
    store = S3BlobStore(BUCKET, endpoint=s3_held.server.endpoint)  # without a prefix
    theirs = ["backups/db.dump", "uploads/photo.jpg", "sha256/ab/notes", f"sha256/ab/{'0' * 64}"]
    ours = ["uploads/" + "0" * 32, f"sha256/ab/ab{'0' * 62}"]
    for key in theirs + ours:
        s3_held.admin.create_multipart_upload(Bucket=BUCKET, Key=key)
    s3_held.admin.put_object(Bucket=BUCKET, Key=theirs[1], Body=b"a photo")
    try:
        assert store.sweep(before=FAR) == sorted(ours)
        assert sorted(s3_held.uploads()) == sorted(theirs)
        assert s3_held.admin.get_object(Bucket=BUCKET, Key=theirs[1])["Body"].read() == b"a photo"
    finally:
        s3_held.admin.delete_object(Bucket=BUCKET, Key=theirs[1])
        store.close()


@pytest.mark.usefixtures("small_parts")
def test_a_put_of_several_parts_is_read_back_as_one(s3_held: HeldInS3) -> None:
    s3_held.store.put(digest_of(LARGE), len(LARGE), io.BytesIO(LARGE))
    assert (read(s3_held, LARGE), s3_held.names(), s3_held.uploads()) == (LARGE, [blob(LARGE)], [])
