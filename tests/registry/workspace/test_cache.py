"""The cache of fetched files: what it lists, and what pruning removes."""

import io
import os
import time
from datetime import timedelta
from pathlib import Path

from loratree_registry.core.digests import digest_stream
from loratree_registry.workspace.cache import CachedFile, list_cached, note_use, open_cache, prune


def fill(home: Path, *sizes: int) -> list[str]:
    """Files of these sizes, each used an hour after the one before it, the last one an hour ago."""
    digests = []
    for number, size in enumerate(sizes):
        content = bytes([number]) * size
        digest, _ = digest_stream(io.BytesIO(content))
        open_cache(home).put(digest, size, io.BytesIO(content))
        used = time.time() - 3600 * (len(sizes) - number)
        os.utime(open_cache(home).path(digest), (used, used))
        digests.append(digest)
    return digests


def names(files: list[CachedFile]) -> list[str]:
    return [file.sha256 for file in files]


def test_the_file_that_was_used_last_comes_first(tmp_path: Path) -> None:
    old, middle, new = fill(tmp_path, 10, 20, 30)
    assert names(list_cached(tmp_path)) == [new, middle, old]
    note_use(open_cache(tmp_path).path(old))
    assert [(file.sha256, file.size) for file in list_cached(tmp_path)] == [(old, 10), (new, 30), (middle, 20)]


def test_the_longest_unused_go_until_the_rest_fits(tmp_path: Path) -> None:
    old, middle, new = fill(tmp_path, 10, 20, 30)
    assert names(list(prune(tmp_path, keep=50, dry_run=True))) == [old]
    assert len(list_cached(tmp_path)) == 3
    assert names(list(prune(tmp_path, keep=50))) == [old]
    assert names(list_cached(tmp_path)) == [new, middle]
    assert names(list(prune(tmp_path, keep=0))) == [new, middle]
    assert list_cached(tmp_path) == []


def test_what_was_not_used_for_a_time_goes(tmp_path: Path) -> None:
    old, middle, new = fill(tmp_path, 10, 20, 30)
    assert names(list(prune(tmp_path, unused=timedelta(minutes=90)))) == [middle, old]
    assert names(list_cached(tmp_path)) == [new]


def test_a_file_that_is_open_stays_readable_and_an_empty_cache_is_no_error(tmp_path: Path) -> None:
    [digest] = fill(tmp_path, 1000)
    with open_cache(tmp_path).open(digest) as stream:
        assert names(list(prune(tmp_path, keep=0))) == [digest]
        assert len(stream.read()) == 1000
    assert list(prune(tmp_path / "nothing", keep=0, unused=timedelta(0))) == []
