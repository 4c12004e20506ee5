"""What lies on the disk, in RAM and on the device: limits, counters, one load a digest, no file for a switch."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from loratree_composer import Composer
from loratree_composer.adapters import reader
from loratree_composer.adapters.tiers import Tiers
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.errors import Conflict, Corrupt, Invalid, NotFound
from loratree_registry.remote.registry import RemoteRegistry
from loratree_registry.workspace.cache import list_cached
from tests.composer import chains
from tests.composer.conftest import Catalog
from tests.composer.residency.conftest import USERS, user
from tests.long import LONG
from tests.opened import opened
from tests.registry.serving import Served, served

THREADS = 16
BATCHES = 10_000 if LONG else 320


@contextmanager
def composer(catalog: Catalog, registry: Any = None, **options: Any) -> Iterator[Composer]:
    found = Composer(chains.load(catalog.tree.base), registry or catalog.registry, home=catalog.home, **options)
    yield found
    found.restore(release=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as found:
        yield found


def ids(rows: int) -> torch.Tensor:
    return torch.arange(rows * 5).view(rows, 5) % 60 + 3


@torch.inference_mode()
def logits(composer: Composer, given: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = composer.model(given).logits
    return found


def test_a_switch_between_resident_versions_touches_no_file(forest: Catalog) -> None:
    refs = [user(forest, at) for at in range(USERS)]
    with composer(forest) as live:
        assert live.prefetch(below=forest.path(3)).result(60) == USERS + 2  # alice, and the task itself
        resolved = [forest.registry.resolve(ref) for ref in refs]
        before = live.residency()
        assert before.device.versions == USERS + 4
        with live.batch([resolved[0]]) as batch:
            found = []
            with opened() as files:
                for resolution in resolved:
                    batch.assign([resolution])
                    found.append(logits(live, ids(1)))
            assert files == []
            assert [resolution.ref for resolution in batch.resolutions] == [refs[-1]]
        after = live.residency()
        assert (after.device.misses, after.ram.misses) == (before.device.misses, before.ram.misses)
        assert after.device.hits == before.device.hits + 4 * (USERS + 1)
        for at in (0, 7, USERS - 1):
            live.merge(refs[at])
            assert chains.relative(found[at], logits(live, ids(1))) < 1e-5


def test_a_resolution_has_its_own_choices(forest: Catalog) -> None:
    resolved = forest.registry.resolve(user(forest, 0), weights={forest.path(1): 0.5})
    with composer(forest) as live:
        live.merge(user(forest, 0), weights={forest.path(1): 0.5})
        expected = logits(live, ids(1))
        with live.batch([resolved]):
            assert chains.relative(logits(live, ids(1)), expected) < 1e-5
        for options in ({"follow": "latest"}, {"weights": {forest.path(1): 2.0}}):
            with pytest.raises(Invalid, match="has its versions and level weights: give its path to choose others"):
                live.batch([resolved], **options).__enter__()
        damaged = replace(resolved, composition=f"sha256:{'0' * 64}")
        with pytest.raises(Corrupt, match="does not give the digests"):
            live.batch([damaged]).__enter__()


def test_many_threads_that_ask_for_one_version_load_it_once(forest: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    read, count, gate = reader.read_adapter, dict[str, int](), threading.Barrier(THREADS)

    def counted(*args: Any, digest: str = "", **options: Any) -> Any:
        count[digest] = count.get(digest, 0) + 1
        threading.Event().wait(0.01)  # long enough for the others to come
        return read(*args, digest=digest, **options)

    monkeypatch.setattr(reader, "read_adapter", counted)
    with composer(forest) as live:
        resolved = [forest.registry.resolve(user(forest, at)) for at in range(USERS)]

        def ask(seed: int) -> None:
            gate.wait()
            for at in Random(seed).sample(range(USERS), USERS):
                live.prefetch([resolved[at]], device=seed % 2 == 0).result(60)

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(ask, range(THREADS)))
        found = live.residency()
    assert set(count.values()) == {1}
    assert len(count) == USERS + 3
    assert (found.ram.misses, found.device.misses) == (USERS + 3, USERS + 3)
    assert found.ram.loaded == found.ram.held


def test_a_load_that_fails_fails_for_all_and_is_tried_again(forest: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    with composer(forest) as live:
        with monkeypatch.context() as patch:
            patch.setattr(reader, "read_adapter", lambda *_, **__: (_ for _ in ()).throw(Corrupt("the disk lies")))
            waiting = [live.prefetch([user(forest, 0)]) for _ in range(4)]
            for one in waiting:
                with pytest.raises(Corrupt, match="the disk lies"):
                    one.result(60)
            assert live.residency().ram.versions == 0
        assert live.prefetch([user(forest, 0)]).result(60) == 1


def test_the_ram_holds_no_more_than_its_limit(forest: Catalog) -> None:
    sizes = {}
    with composer(forest) as live:
        live.prefetch(below=forest.path(3), device=False).result(60)
        sizes = live.resident
    limit = sum(sizes.values()) - 20 * min(sizes.values())
    with composer(forest, tiers=Tiers(ram=limit)) as live:
        live.prefetch(below=forest.path(3), device=False).result(60)
        found = live.residency().ram
        assert found.held is not None
        assert 0 < found.held <= limit == found.limit
        assert found.evictions == found.misses - len(live.resident) > 0
        assert live.memory().adapters == found.held
    with composer(forest, tiers=Tiers(ram=0, device=0)) as live:
        with pytest.raises(
            Invalid, match=r"the paths take [\d,]+ bytes of versions, and the device's limit is 0: raise"
        ):
            live.batch([user(forest, 0)]).__enter__()
        live.use(user(forest, 0))  # what is on the model needs no room in the cache
        assert live.residency().ram.held == 0


def test_the_disk_keeps_what_was_used_last_and_what_is_damaged_is_fetched_again(
    forest: Catalog, server: Served, tmp_path: Path
) -> None:
    assert isinstance(forest.registry, EmbeddedRegistry)
    home = tmp_path / "client"
    registry = RemoteRegistry(server.over(forest.registry, tmp_path))
    size = max(file.size for file in forest.registry.version(user(forest, 0)).files)
    above = sum(file.size for depth in (1, 2, 3) for file in forest.registry.version(forest.path(depth)).files)
    limit = above + 10 * size

    def start(**options: Any) -> Composer:
        return Composer(chains.load(forest.tree.base), registry, home=home, **options)

    live = start(tiers=Tiers(disk=limit, ram=0))
    for at in range(USERS):
        live.prefetch([user(forest, at)]).result(60)
    found = live.residency().disk
    assert sum(file.size for file in list_cached(home)) <= limit + 0.05 * limit + size
    assert (found.misses, found.limit) == (USERS + 3, limit)
    assert found.evictions > 0
    live.restore(release=True)

    newest, oldest = user(forest, USERS - 1), user(forest, 0)
    live = start(tiers=Tiers(disk=limit))
    live.prefetch([newest]).result(60)
    found = live.residency().disk
    assert (found.hits, found.misses) == (1, 3)  # what is above was used long ago: it was held beside the model since
    live.prefetch([oldest]).result(60)
    assert live.residency().disk.misses == 4
    live.restore(release=True)

    (digest,) = (file.sha256 for file in forest.registry.version(newest).files)
    (kept,) = home.glob(f"cache/**/{digest.removeprefix('sha256:')}")
    assert (home / "cache").stat().st_mode & 0o777 == 0o700
    kept.chmod(0o600)
    kept.write_bytes(kept.read_bytes()[:-8] + b"\xff" * 8)
    live = start()
    with live.batch([newest]):
        row = logits(live, ids(1))
    assert live.residency().disk.misses == 1
    live.merge(newest)
    assert chains.relative(row, logits(live, ids(1))) < 1e-5
    live.restore(release=True)
    registry.close()


def test_a_prefetch_tells_what_is_wrong_and_loads_only_from_its_tree(forest: Catalog) -> None:
    with composer(forest) as live:
        wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
            ({"refs": [f"{forest.path(1)}/nobody"]}, NotFound, "nobody"),
            ({"refs": ["other/x"]}, Invalid, "other/x is not in the tree of tiny"),
            ({"below": f"{forest.path(1)}@1"}, Invalid, "names one version: give the path of a node"),
            ({"below": f"{forest.path(1)}/nobody"}, NotFound, "nobody"),
        ]
        for options, kind, sentence in wrong:
            with pytest.raises(kind, match=sentence):
                live.prefetch(**options).result(60)
        assert live.residency().ram.versions == 0
        assert live.prefetch().result(60) == 0
        assert live.prefetch(below="tiny", device=False).result(60) == USERS + 4
        assert (live.residency().ram.versions, live.residency().device.versions) == (USERS + 4, 0)
    for limits in ({"ram": -1}, {"disk": 1.5}, {"device": True}):
        with pytest.raises(Invalid, match="is a whole number of bytes from 0"):
            Tiers(**limits)


def test_many_threads_with_room_for_a_tenth_get_right_answers_and_leave_nothing(forest: Catalog) -> None:
    refs = [user(forest, at) for at in range(USERS)]
    expected = []
    with composer(forest) as live:
        live.prefetch(refs).result(60)
        everything = live.residency().device.held
        for ref in refs:
            live.merge(ref)
            expected.append(logits(live, ids(1)))
    assert everything is not None
    task = chains.load(forest.tree.base)
    limit = everything // 10 + _above(forest)
    resolved = [forest.registry.resolve(ref) for ref in refs]
    live = Composer(task, forest.registry, home=forest.home, tiers=Tiers(ram=limit, device=limit))
    before, weights = live.memory(), chains.state_digest(task)

    def work(seed: int) -> None:
        random = Random(seed)
        for _ in range(BATCHES // THREADS):
            chosen = random.sample(range(USERS), random.randint(1, 3))
            if random.random() < 0.2:
                live.prefetch([resolved[random.randrange(USERS)]])
            with live.batch([resolved[at] for at in chosen]):
                found = logits(live, ids(1).expand(len(chosen), -1))
            for row, at in zip(found, chosen, strict=True):
                assert chains.relative(row, expected[at]) < 1e-5

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, seed) for seed in range(THREADS)]:
            done.result(600 if LONG else 120)
    found = live.residency()
    assert found.device.held is not None
    assert found.device.held <= limit
    assert found.device.evictions > 0
    live.prefetch().result(60)
    while any(thread.name.startswith("loratree prefetch") for thread in threading.enumerate()):
        threading.Event().wait(0.01)
    live.restore(release=True)
    assert live.memory() == before
    assert chains.state_digest(task) == weights


def _above(forest: Catalog) -> int:
    """The bytes of what all users stand on."""
    with composer(forest) as live:
        live.prefetch([forest.path(3)]).result(60)
        held = live.residency().device.held
    assert held is not None
    return held


def test_a_damaged_blob_refuses_its_batch_and_no_other(forest: Catalog) -> None:
    good, bad = user(forest, 1), user(forest, 2)
    (digest,) = (file.sha256 for file in forest.registry.version(bad).files)
    (blob,) = forest.home.glob(f"blobs/**/{digest.removeprefix('sha256:')}")
    blob.chmod(0o600)
    blob.write_bytes(b"\0" * blob.stat().st_size)
    with composer(forest) as live, live.batch([good, good]) as batch:
        expected = logits(live, ids(2))
        held = live.residency().device.versions
        with pytest.raises(Corrupt, match="is damaged"):
            batch.assign([good, bad])
        with pytest.raises(Corrupt, match="is damaged"):
            live.prefetch([bad]).result(60)
        assert torch.equal(logits(live, ids(2)), expected)
        assert live.residency().device.versions == held


def test_another_composers_model_is_not_touched(forest: Catalog) -> None:
    with composer(forest) as live, live.batch([user(forest, 0)]), pytest.raises(Conflict):
        Composer(live.model, forest.registry, home=forest.home).use(user(forest, 1))
