"""The counter of long tasks: what it tells, how often, and how it ends work in other threads."""

import io
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from loratree_registry.blobs.counted import counted
from loratree_registry.core.digests import digest_stream
from loratree_registry.core.progress import BYTES, Counter, Stopped, silent, stopping
from tests.registry.material import sha256

Told = list[tuple[str, int, int, str]]


def test_it_tells_the_begin_and_the_end_and_little_between() -> None:
    told: Told = []
    counter = Counter(lambda *step: told.append(step), "hashing", 100_000)
    for _ in range(100_000):
        counter.add()
    assert (told[0], told[-1]) == (("hashing", 0, 100_000, BYTES), ("hashing", 100_000, 100_000, BYTES))
    assert len(told) < 1000
    assert [done for _, done, *_ in told] == sorted(done for _, done, *_ in told)


def test_bytes_that_are_read_twice_are_not_more_than_all() -> None:
    told: Told = []
    counter = Counter(lambda *step: told.append(step), "sending", 10, then="the registry checks it")
    counter.add(7)
    counter.add(7)
    counter.add(7)
    assert told == [("sending", 0, 10, BYTES), ("sending", 10, 10, BYTES), ("the registry checks it", 0, 0, BYTES)]


def test_threads_lose_no_count() -> None:
    told: Told = []
    counter = Counter(lambda *step: told.append(step), "reading", 8000, "files")
    with ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(lambda: [counter.add() for _ in range(1000)])
    assert told[-1] == ("reading", 8000, 8000, "files")


def test_leaving_by_an_exception_ends_the_work_of_other_threads() -> None:
    counter = Counter(silent, "reading", 0)

    def work() -> None:
        while True:
            counter.add()

    with ThreadPoolExecutor(2) as threads:
        working = threads.submit(work)
        with pytest.raises(KeyboardInterrupt), stopping(counter):
            raise KeyboardInterrupt
        assert isinstance(working.exception(timeout=60), Stopped)


@pytest.mark.parametrize("seekable", [True, False])
def test_a_counted_stream_holds_the_same_bytes_and_counts_each_once(seekable: bool) -> None:
    content, counts = os.urandom(3_000_000), []
    stream = io.BytesIO(content)
    if not seekable:
        stream.seekable = lambda: False  # type: ignore[method-assign] # as a stream of the network
    reader = counted(stream, counts.append)
    assert reader.seekable() == seekable
    assert digest_stream(reader) == (sha256(content), len(content))
    assert sum(counts) == len(content)
    if seekable:
        reader.seek(1_000_000)
        assert reader.read(5) == content[1_000_000:1_000_005]
        assert sum(counts) == len(content)
