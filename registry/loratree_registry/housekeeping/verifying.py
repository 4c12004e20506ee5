"""Verifying: stored bytes are read and hashed, digests made anew, and rows compared with each other."""

import random
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Final

from sqlalchemy import Connection

from loratree_registry.blobs.store import BlobStore
from loratree_registry.catalog.lineage import ancestry
from loratree_registry.catalog.nodes import find_node
from loratree_registry.core.digests import DIGEST_PREFIX, digest_stream
from loratree_registry.core.manifest import BaseManifest, read_manifest
from loratree_registry.core.paths import parse_ref
from loratree_registry.core.text import Progress
from loratree_registry.database import queries
from loratree_registry.database.engine import reading
from loratree_registry.database.rows import BlobRow
from loratree_registry.embedded.storage import Storage
from loratree_registry.errors import NotFound, Unavailable
from loratree_registry.housekeeping.exports.line_rows import version_line

THREADS: Final = 4
NAMED: Final = 1000  # versions that are listed of those that share a damaged blob, and problems of one kind
_ABSENT: Final = DIGEST_PREFIX + "0" * 64  # a blob that there cannot be: whoever answers about it answers at all
_LINE: Final = 64 + 1 + 20 + 1  # bytes: a blob's digits, a space, its size, the line's end


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A blob that is not as it was stored, how, and what it touches: versions by PATH@NUMBER, and bases.

    `versions` lists at most NAMED of the `count`; both are empty where nothing refers to the blob.
    """

    sha256: str
    size: int
    problem: str
    versions: list[str]
    count: int
    bases: list[str]

    @property
    def touches(self) -> str:
        """What it touches, for people."""
        shown = [f"the base {base}" for base in self.bases] + self.versions[:20]
        more = self.count - min(len(self.versions), 20)
        return ", ".join(shown or ["nothing"]) + (f", and {more} more versions" if more else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was checked and what was found: `stored` blobs in scope, those of them that were read, and the damage."""

    stored: int
    read: int
    bytes: int
    versions: int
    damaged: list[Damage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not (self.damaged or self.problems)


@dataclass(frozen=True, slots=True)
class Sample:
    """How much of the blobs to read: a number of them, or a share from 0 to 1; the same seed picks the same ones."""

    count: int | None = None
    share: float | None = None
    seed: int = 0

    def of(self, total: int) -> list[int]:
        """Which of `total` to read, rising; at least one where there is one."""
        wanted = self.count if self.count is not None else -int(-total * (self.share or 0.0) // 1)
        return sorted(random.Random(self.seed).sample(range(total), min(total, wanted)))  # noqa: S311 - no secret


def verify(
    storage: Storage, ref: str | None = None, *, sample: Sample | None = None, progress: Progress = lambda *_: None
) -> Verification:
    """Reads and hashes every stored blob, or those of a subtree, or of a version and what it was trained on.

    The digests of the same versions and bases are made anew, and rows that contradict others are told. Changes nothing.
    Raises NotFound, Unavailable.
    """
    with tempfile.TemporaryFile() as queue:
        with reading(storage.engine) as connection:
            if ref is not None and parse_ref(ref).selector is not None:
                count, versions, problems = _chain(connection, queue, ref)
            else:
                count, versions, problems = _subtree(connection, queue, None if ref is None else parse_ref(ref).path)
        chosen = range(count) if sample is None else sample.of(count)
        size, damaged = _read_all(storage, (_at(queue, place) for place in chosen), len(chosen), progress)
    return Verification(
        stored=count, read=len(chosen), bytes=size, versions=versions, damaged=damaged, problems=problems
    )


def _subtree(connection: Connection, queue: IO[bytes], path: str | None) -> tuple[int, int, list[str]]:
    """Queues the blobs of a subtree or of everything, and checks its rows."""
    if path is not None:
        find_node(connection, path)
    count = _write(queue, queries.verifying.stream_stored(connection, path))
    problems = _Problems()
    for row, _ in queries.exporting.stream_bases(connection, path):
        problems.add(_base_problems(row.name, row.digest, read_manifest(row.manifest)))
    versions = 0
    for row, files in queries.exporting.stream_versions(connection, path):
        problems.add(version_line(row, files).problems(row.base_digest))
        versions += 1
    problems.add(queries.verifying.contradictions(connection, path, limit=NAMED))
    return count, versions, problems.told()


def _chain(connection: Connection, queue: IO[bytes], ref: str) -> tuple[int, int, list[str]]:
    """Queues the blobs of a version and of what it was trained on, and checks their digests."""
    chain = ancestry(connection, ref)
    blobs = queries.verifying.find_stored(
        connection, sorted({file.sha256 for version in chain for file in version.files})
    )
    problems = _Problems()
    for version in chain:
        problems.add(version.problems())
    return _write(queue, blobs), len(chain), problems.told()


class _Problems:
    """Clauses, of which NAMED are kept."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._count = 0

    def add(self, found: list[str]) -> None:
        self._kept += found[: NAMED - len(self._kept)]
        self._count += len(found)

    def told(self) -> list[str]:
        more = self._count - len(self._kept)
        return [*self._kept, f"{more} more problems of this kind"] if more else self._kept


def _base_problems(name: str, digest: str, manifest: BaseManifest) -> list[str]:
    found = manifest.digest
    return [] if found == digest else [f"the base {name} has the digest {digest}, its manifest gives {found}"]


def _write(queue: IO[bytes], blobs: Iterable[BlobRow]) -> int:
    """Writes the blobs as lines of one length, so that memory holds none and a sample can be picked."""
    count = 0
    for count, blob in enumerate(blobs, 1):  # noqa: B007 - what is left is how many there were
        queue.write(f"{blob.sha256.removeprefix(DIGEST_PREFIX)} {blob.size:020d}\n".encode())
    return count


def _at(queue: IO[bytes], place: int) -> BlobRow:
    queue.seek(place * _LINE)
    digits, size = queue.read(_LINE).split()
    return BlobRow(DIGEST_PREFIX + digits.decode(), int(size))


def _read_all(storage: Storage, blobs: Iterator[BlobRow], total: int, progress: Progress) -> tuple[int, list[Damage]]:
    """Reads the blobs in a few threads, with as many waiting, and returns the bytes and the damage."""
    size, damaged, waiting = 0, [], deque[tuple[BlobRow, Future[str | None]]]()
    with ThreadPoolExecutor(THREADS) as threads:
        for done in range(1, total + 1):
            while len(waiting) < 2 * THREADS and (blob := next(blobs, None)) is not None:
                waiting.append((blob, threads.submit(_problem, storage.blobs, blob)))
            blob, found = waiting.popleft()
            size += blob.size
            if (problem := found.result()) and (damage := _damage(storage, blob, problem)):
                damaged.append(damage)
            progress("reading", done, total)
    return size, damaged


def _problem(blobs: BlobStore, blob: BlobRow) -> str | None:
    """What is wrong with a blob where it is stored; None where nothing is. Raises Unavailable where no blob is read."""
    try:
        with blobs.open(blob.sha256) as stream:
            digest, size = digest_stream(stream)
    except NotFound:
        return "is missing"
    except (Unavailable, OSError) as error:
        blobs.size(_ABSENT)  # raises where it is the store that does not answer
        return f"cannot be read ({error})"
    if size != blob.size:
        return f"has {size} bytes"
    return None if digest == blob.sha256 else f"holds other bytes, {digest}"


def _damage(storage: Storage, blob: BlobRow, problem: str) -> Damage | None:
    """What a damaged blob touches; None where it was collected since it was listed."""
    with reading(storage.engine) as connection:
        if not queries.verifying.find_stored(connection, [blob.sha256]):
            return None
        return Damage(
            sha256=blob.sha256,
            size=blob.size,
            problem=problem,
            versions=queries.verifying.list_users(connection, blob.sha256, limit=NAMED),
            count=queries.verifying.count_users(connection, blob.sha256),
            bases=queries.verifying.bases_with(connection, blob.sha256),
        )
