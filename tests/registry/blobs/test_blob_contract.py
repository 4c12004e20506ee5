"""What every blob store promises."""

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loratree_registry.blobs.store import ReadBack
from loratree_registry.errors import Conflict, Invalid, NotFound
from tests.examples import examples

from .conftest import Held

CONTENT = b"the bytes of an adapter"
ABSENT = "sha256:" + "0" * 64
FAR = datetime.now(UTC) + timedelta(days=1)


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Forward(io.BytesIO):
    """A stream that cannot seek, such as a request's body."""

    def seekable(self) -> bool:
        return False


def put(
    held: Held,
    content: bytes,
    *,
    digest: str | None = None,
    size: int | None = None,
    kind: Callable[[bytes], BinaryIO] = io.BytesIO,
    read_back: ReadBack | None = None,
) -> str:
    digest = digest or digest_of(content)
    held.store.put(digest, len(content) if size is None else size, kind(content), read_back=read_back)
    return digest


def read(held: Held, digest: str) -> bytes:
    with held.store.open(digest) as stream:
        return stream.read()


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=5000))
def test_what_is_put_is_read_back(held: Held, content: bytes) -> None:
    digest = put(held, content)
    assert (read(held, digest), held.store.size(digest)) == (content, len(content))


def test_a_blob_is_named_by_its_digest_alone(held: Held) -> None:
    digest = put(held, CONTENT)
    assert held.names() == [f"sha256/{digest[7:9]}/{digest[7:]}"]


def test_a_blob_larger_than_every_buffer_is_read_back(held: Held) -> None:
    content = os.urandom(5 * 1024 * 1024 + 17)
    assert read(held, put(held, content)) == content


def test_a_stream_that_cannot_seek_is_stored_too(held: Held) -> None:
    assert read(held, put(held, CONTENT, kind=Forward)) == CONTENT


def test_a_stream_is_stored_from_where_it_stands(held: Held) -> None:
    stream = io.BytesIO(b"header" + CONTENT)
    stream.seek(6)
    held.store.put(digest_of(CONTENT), len(CONTENT), stream)
    assert read(held, digest_of(CONTENT)) == CONTENT


@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize("looks_at", [0, 4, 23, -1])
def test_what_was_stored_is_looked_at_as_it_is_read_back(held: Held, present: bool, looks_at: int) -> None:
    if present:
        put(held, CONTENT)
    seen = []
    put(held, CONTENT, read_back=lambda stream: seen.append(stream.read(looks_at)))
    assert seen == [CONTENT[:looks_at] if looks_at >= 0 else CONTENT]


@pytest.mark.parametrize("present", [False, True])
def test_a_refusal_of_what_was_stored_is_raised_and_nothing_new_is_visible(held: Held, present: bool) -> None:
    if present:
        put(held, CONTENT)
    with pytest.raises(Conflict, match="not an adapter"):
        put(held, CONTENT, read_back=refuse)
    assert (held.store.size(digest_of(CONTENT)), len(held.names())) == (len(CONTENT) if present else None, present)


def refuse(stream: BinaryIO) -> None:
    raise Conflict("not an adapter")


def test_what_a_damaged_blob_looks_like_is_no_reason_to_keep_it(held: Held) -> None:
    held.overwrite(put(held, CONTENT), b"spoiled")
    put(held, CONTENT, read_back=lambda stream: stream.read() == CONTENT or refuse(stream))
    assert read(held, digest_of(CONTENT)) == CONTENT


def test_blobs_are_listed_in_the_order_of_digests_from_after_any_one(held: Held) -> None:
    digests = sorted(put(held, bytes([number])) for number in range(9))
    assert [blob.digest for blob in held.store.list_blobs()] == digests
    for place, digest in enumerate(digests):
        assert [blob.digest for blob in held.store.list_blobs(after=digest)] == digests[place + 1 :]
    assert [blob.digest for blob in held.store.list_blobs(after=ABSENT)] == digests


def test_a_listed_blob_has_its_size_and_the_time_of_its_writing(held: Held) -> None:
    before = datetime.now(UTC) - timedelta(seconds=2)  # servers tell whole seconds
    digest = put(held, CONTENT)
    [blob] = held.store.list_blobs()
    assert (blob.digest, blob.size) == (digest, len(CONTENT))
    assert before <= blob.modified <= datetime.now(UTC) + timedelta(seconds=2)


def test_an_empty_store_lists_nothing_and_has_nothing_to_sweep(held: Held) -> None:
    assert list(held.store.list_blobs()) == []
    assert held.store.sweep(before=FAR) == []


def test_a_sweep_never_takes_a_blob(held: Held) -> None:
    names = (put(held, CONTENT), held.names())[1]
    assert held.store.sweep(before=FAR) == []
    assert held.names() == names


def test_a_blob_can_be_read_in_pieces(held: Held) -> None:
    with held.store.open(put(held, CONTENT)) as stream:
        assert [stream.read(4), stream.read(6), stream.read(), stream.read()] == [b"the ", b"bytes ", CONTENT[10:], b""]


def test_putting_the_same_bytes_again_changes_nothing(held: Held) -> None:
    digest = put(held, CONTENT)
    names = held.names()
    assert put(held, CONTENT) == digest
    assert (held.names(), read(held, digest)) == (names, CONTENT)


@pytest.mark.parametrize("spoiled", [b"the bytes of an adaptex", b"cut", b"", CONTENT + b"longer"])
def test_a_stored_blob_of_other_bytes_is_replaced_by_the_good_ones(held: Held, spoiled: bytes) -> None:
    digest = put(held, CONTENT)
    held.overwrite(digest, spoiled)
    put(held, CONTENT)
    assert read(held, digest) == CONTENT


@pytest.mark.parametrize("kind", [io.BytesIO, Forward])
@pytest.mark.parametrize("present", [False, True])
@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (CONTENT[:-1], "expected 23 bytes, got 22"),
        (b"", "expected 23 bytes, got 0"),
        (CONTENT + b"!", "expected 23 bytes, got more"),
        (CONTENT.upper(), "hash the file again"),
    ],
)
def test_a_stream_of_other_bytes_is_refused_and_leaves_nothing(
    held: Held, sent: bytes, sentence: str, present: bool, kind: Callable[[bytes], BinaryIO]
) -> None:
    if present:
        put(held, CONTENT)
    with pytest.raises(Invalid, match=sentence):
        put(held, sent, digest=digest_of(CONTENT), size=len(CONTENT), kind=kind)
    assert len(held.names()) == present
    assert held.store.size(digest_of(CONTENT)) == (len(CONTENT) if present else None)


class Endless(io.RawIOBase):
    """A stream that never ends, and counts what was taken from it."""

    taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.taken += len(buffer)
        return len(buffer)


def test_a_stream_longer_than_announced_is_read_one_byte_too_far_and_no_more(held: Held) -> None:
    stream = Endless()
    with pytest.raises(Invalid, match="got more"):
        held.store.put(ABSENT, 1000, stream)  # type: ignore[arg-type]
    assert (stream.taken, held.names()) == (1001, [])


class Failing(io.RawIOBase):
    """A stream whose disk fails after a few bytes."""

    left = 10

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.left:
            raise OSError(5, "Input/output error")
        count, self.left = self.left, 0
        return count


def test_a_source_that_cannot_be_read_is_told_and_leaves_nothing(held: Held) -> None:
    with pytest.raises(Invalid, match="cannot be read: Input/output error"):
        held.store.put(ABSENT, 1000, Failing())  # type: ignore[arg-type]
    assert held.names() == []


def test_a_blob_that_is_not_there_is_not_found_and_has_no_size(held: Held) -> None:
    put(held, CONTENT)
    assert held.store.size(ABSENT) is None
    with pytest.raises(NotFound, match=ABSENT), held.store.open(ABSENT):
        pass


def test_a_deleted_blob_is_gone_and_deleting_it_again_is_no_error(held: Held) -> None:
    digest = put(held, CONTENT)
    held.store.delete(digest)
    held.store.delete(digest)
    assert (held.store.size(digest), held.names()) == (None, [])


def test_writers_of_the_same_blob_at_the_same_time_all_succeed(held: Held) -> None:
    content = os.urandom(300_000)
    with ThreadPoolExecutor(6) as pool:
        digests = set(pool.map(lambda _: put(held, content), range(12)))
    assert digests == {digest_of(content)}
    assert read(held, digest_of(content)) == content
    assert len(held.names()) == 1


@pytest.mark.parametrize("digest", ["", "sha256:abc", "sha256:" + "A" * 64, "../../etc/passwd", "md5:" + "0" * 64])
def test_what_is_not_a_digest_never_becomes_a_name(held: Held, digest: str) -> None:
    for verb in (held.store.size, held.store.delete, lambda name: held.store.put(name, 0, io.BytesIO())):
        with pytest.raises(Invalid, match="is not a digest"):
            verb(digest)
    with pytest.raises(Invalid, match="is not a digest"), held.store.open(digest):
        pass


def test_a_negative_size_is_refused(held: Held) -> None:
    with pytest.raises(Invalid, match="expected 0 or more"):
        put(held, CONTENT, size=-1)
