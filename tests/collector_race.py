"""The collector races publishers, deleters and readers, without a grace: python -m tests.collector_race --operations N.

Several processes of several threads publish, delete and read a few versions of a few contents, so that the same bytes
come and go all the time, while a collector in each process removes what it can with a grace of nothing. A publisher may
be told to send its bytes again; a version whose bytes are gone is one too many.
"""

import argparse
import hashlib
import logging
import multiprocessing
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from loratree_registry.core.records import Version
from loratree_registry.database import queries
from loratree_registry.database.engine import upgrade_database, writing
from loratree_registry.embedded.registry import EmbeddedRegistry, open_embedded
from loratree_registry.embedded.storage import Storage, open_storage
from loratree_registry.errors import Conflict, Corrupt, LoratreeError, NotFound, NotUploaded, Unavailable
from loratree_registry.housekeeping.collecting import collect
from loratree_registry.settings import Settings
from tests.postgresql import postgresql
from tests.registry import material as made
from tests.registry.material import WEIGHTS, Adapter, Material, publish
from tests.s3 import moto

PATHS = tuple(f"tiny/node{number}" for number in range(4))
CONTENTS = 12
TRIES = 3  # as submitting.publish_directory
NOW = timedelta(0)
FORBIDDEN = ("dangling", "leaked", "unclean")
Counts = Counter[str]


def race(
    settings: Settings, material: Material, *, operations: int, processes: int = 2, threads: int = 3, seed: int = 0
) -> Counts:
    """Races over an empty registry and counts what happened; `dangling`, `leaked` and `unclean` have to be none."""
    adapters = [material.rank2.variant(number) for number in range(1, CONTENTS + 1)]
    registry = open_embedded(settings)
    try:
        registry.add_base("tiny", material.base)
        for path in PATHS:
            registry.create_node(path)
        share = -(-operations // processes)
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
            running = [pool.submit(_process, settings, adapters, share, threads, seed + n) for n in range(processes)]
            counts = sum((done.result() for done in running), Counts())
        with open_storage(settings) as storage:
            counts["collected"] += sum(1 for _ in collect(storage, settings.home / "uploads", grace=NOW))
            return counts + _afterwards(registry, storage)
    finally:
        registry.close()


def told(counts: Counts) -> str:
    """The counts for people; those that must be none are there even so."""
    names = ("operations", "publishes", "deleted", "collected", "refused")
    others = sorted(counts.keys() - {*names, *FORBIDDEN})
    return ", ".join(f"{name}={counts[name]}" for name in (*names, *others, *FORBIDDEN))


def _process(settings: Settings, adapters: Sequence[Adapter], operations: int, threads: int, seed: int) -> Counts:
    registry = open_embedded(settings)
    over = threading.Event()
    try:
        with open_storage(settings) as storage, ThreadPoolExecutor(threads + 1) as pool:
            collecting = pool.submit(_collect, storage, settings.home / "uploads", over)
            share = -(-operations // threads)
            try:
                racing = [pool.submit(_race, registry, adapters, share, seed * 100 + n) for n in range(threads)]
                counts = sum((done.result() for done in racing), Counts())
            finally:
                over.set()
            return counts + collecting.result()
    finally:
        registry.close()


def _collect(storage: Storage, uploads: Path, over: threading.Event) -> Counts:
    counts = Counts()
    while not over.is_set():
        counts["collected"] += sum(1 for _ in collect(storage, uploads, grace=NOW))
        counts["runs"] += 1
        time.sleep(0.01)
    return counts


def _race(registry: EmbeddedRegistry, adapters: Sequence[Adapter], operations: int, seed: int) -> Counts:
    chosen, counts = random.Random(seed), Counts()
    for _ in range(operations):
        [operation] = chosen.choices((_publish, _delete, _read, _abandon), weights=(5, 4, 1, 2))
        counts["operations"] += 1
        operation(registry, chosen.choice(PATHS), chosen.choice(adapters), counts)
    return counts


def _publish(registry: EmbeddedRegistry, path: str, adapter: Adapter, counts: Counts) -> None:
    """Uploads and publishes, again where the registry asks for the bytes again."""
    for attempt in range(1, TRIES + 1):
        try:
            created = publish(registry, path, adapter, "base").created
        except NotUploaded:
            counts["refused"] += 1
        except LoratreeError as error:
            _clean(error, counts)
        else:
            counts["publishes" if created else "already"] += 1
            counts["retried"] += attempt > 1
            return
    counts["given up"] += 1


def _delete(registry: EmbeddedRegistry, path: str, _: Adapter, counts: Counts) -> None:
    for version in registry.versions(path, limit=1).items:
        try:
            registry.delete(f"{path}@{version.number}", reason="race")
            counts["deleted"] += 1
        except NotFound:
            counts["deleted by another"] += 1
        except LoratreeError as error:
            _clean(error, counts)


def _read(registry: EmbeddedRegistry, path: str, _: Adapter, counts: Counts) -> None:
    for version in registry.versions(path, limit=1).items:
        if _intact(registry, version):
            counts["reads"] += 1
        elif _is_there(registry, version):
            counts["dangling"] += 1
        else:
            counts["deleted while read"] += 1  # what a grace is for


def _abandon(registry: EmbeddedRegistry, _: str, adapter: Adapter, counts: Counts) -> None:
    """Leases bytes and is killed before it sends any."""
    with writing(registry._engine) as connection:
        queries.blobs.lease_blob(connection, adapter.file.sha256, adapter.file.size)
    counts["abandoned"] += 1


def _is_there(registry: EmbeddedRegistry, version: Version) -> bool:
    return any(version.number == other.number for other in registry.versions(version.path, limit=1000).items)


def _intact(registry: EmbeddedRegistry, version: Version) -> bool:
    try:
        with registry.open_file(f"{version.path}@{version.number}", WEIGHTS) as stream:
            return "sha256:" + hashlib.sha256(stream.read()).hexdigest() == version.files[0].sha256
    except (NotFound, Corrupt, Unavailable):  # the last one if a collection has removed them meanwhile
        return False


def _clean(error: LoratreeError, counts: Counts) -> None:
    """Counts a refusal; one that does not say to try again is not clean."""
    again = isinstance(error, Conflict | Unavailable) and "again" in str(error)
    counts["busy" if again else "unclean"] += 1
    if not again:
        print(f"unclean: {type(error).__name__}: {error}")


def _afterwards(registry: EmbeddedRegistry, storage: Storage) -> Counts:
    """What is there in the end: versions without their bytes, and bytes without a version."""
    counts, needed = Counts(dangling=0, leaked=0, unclean=0), set()
    for path in PATHS:
        for version in registry.versions(path, limit=1000).items:
            counts["versions left"] += 1
            counts["dangling"] += not _intact(registry, version)
            needed |= {file.sha256 for file in version.files}
    held = {held.digest for held in storage.blobs.list_blobs()}
    counts["dangling"] += len(needed - held)
    counts["leaked"] += len(held - needed)
    return counts


@contextmanager
def _places(database: str, store: str) -> Iterator[Settings]:
    """Fresh storage of the kinds asked for, in memory where there is some."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder,
        _database(database) as url,
        _store(store) as bucket,
    ):
        yield Settings.from_environment({"LORATREE_HOME": folder, "LORATREE_DATABASE": url} | bucket)


@contextmanager
def _database(kind: str) -> Iterator[str]:
    if kind == "sqlite":
        yield ""
        return
    with postgresql() as server, server.empty() as url:
        upgrade_database(url)
        yield url


@contextmanager
def _store(kind: str) -> Iterator[Mapping[str, str]]:
    if kind == "local":
        yield {}
        return
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
    with moto() as server:
        os.environ.update(server.environment)
        client = server.client()
        client.create_bucket(Bucket="race")
        client.close()
        yield {"LORATREE_BLOBS": "s3://race", "LORATREE_S3_ENDPOINT": server.endpoint}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="postgresql")
    parser.add_argument("--store", choices=("local", "moto"), default="local")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _places(asked.database, asked.store) as settings:
        material = made.make(Path(folder))
        began = time.monotonic()
        counts = race(settings, material, operations=asked.operations, seed=asked.seed)
    print(f"{asked.database}, {asked.store}: {told(counts)}, {time.monotonic() - began:.0f} s")
    raise SystemExit(1 if any(counts[name] for name in FORBIDDEN) else 0)


if __name__ == "__main__":
    main()
