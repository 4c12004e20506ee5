"""Verification: stored bytes are read and hashed, digests computed again, and rows compared with each other."""

import random
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, BinaryIO, Final, cast

from sqlalchemy import Connection

from loratree_registry.blobs.store import BlobStore
from loratree_registry.catalog.lineage import ancestry
from loratree_registry.catalog.nodes import find_node
from loratree_registry.core.digests import DIGEST_PREFIX, digest_stream
from loratree_registry.core.manifest import BaseManifest, read_manifest
from loratree_registry.core.paths import parse_ref
from loratree_registry.core.progress import Counter, Progress, Tick, silent, stopping
from loratree_registry.core.text import counted
from loratree_registry.database import queries
from loratree_registry.database.engine import reading
from loratree_registry.database.rows import BlobRow
from loratree_registry.embedded.storage import Storage
from loratree_registry.errors import NotFound, Unavailable
from loratree_registry.housekeeping.adapter_checks import AdapterChecks, Recorded, describe
from loratree_registry.housekeeping.exports.format import VersionLine, read_lines, written
from loratree_registry.housekeeping.exports.line_rows import version_line

THREADS: Final = 4
NAMED: Final = 1000  # how many versions with the same damaged blob, and how many problems of one kind, are listed
_ABSENT: Final = DIGEST_PREFIX + "0" * 64  # no content has this hash; a store that answers for it is reachable
_IN_MEMORY: Final = 16 * 1024**2  # bytes of the list of blobs, 190,000 of them; a longer one is written to the disk
_LINE: Final = 64 + 1 + 20 + 1  # bytes: the digest's digits, a space, the size, the line's end


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A damaged blob, the problem, and the versions, by PATH@NUMBER, and bases that use the blob.

    `versions` lists at most NAMED of the `count`; both lists are empty if nothing refers to the blob.
    """

    sha256: str
    size: int
    problem: str
    versions: list[str]
    count: int
    bases: list[str]

    @property
    def touches(self) -> str:
        """The bases and versions that use the blob, as text for people."""
        shown = [f"the base {base}" for base in self.bases] + self.versions[:20]
        more = self.count - min(len(self.versions), 20)
        return ", ".join(shown or ["nothing"]) + (f", and {more} more versions" if more else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The result of a verification: `stored` counts the blobs in scope, `read` the blobs that were read and hashed."""

    stored: int
    read: int
    bytes: int
    versions: int
    damaged: list[Damage] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """True if there is no damage and no problem."""
        return not (self.damaged or self.problems)


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of blobs to read: a count, or a share from 0 to 1. The same seed picks the same blobs."""

    count: int | None = None
    share: float | None = None
    seed: int = 0

    def of(self, total: int) -> list[int]:
        """Return the indices to read out of `total`, ascending. A share above 0 picks at least one."""
        wanted = self.count if self.count is not None else -int(-total * (self.share or 0.0) // 1)
        return sorted(random.Random(self.seed).sample(range(total), min(total, wanted)))  # noqa: S311 - no secret


def verify(
    storage: Storage,
    ref: str | None = None,
    *,
    sample: Sample | None = None,
    adapters: bool = False,
    progress: Progress = silent,
) -> Verification:
    """Read and hash every stored blob, or the blobs of a subtree, or the blobs of a version and its pinned ancestors.

    Compute the digests of the same versions and bases again, and report rows that contradict each other. With
    `adapters`, also check each of these versions as publish does: its tensors and values are read once more. Nothing is
    changed. Raises NotFound, Unavailable.
    """
    # In memory if they are small, so that a full disk can be verified too.
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as queue, tempfile.SpooledTemporaryFile(_IN_MEMORY) as lines:
        with reading(storage.engine) as connection:
            if ref is not None and parse_ref(ref).selector is not None:
                queued, versions, problems = _queue_chain(connection, queue, ref)
            else:
                path = None if ref is None else parse_ref(ref).path
                queued, versions, problems = _queue_tree(connection, queue, path)
            manifests = _queue_versions(connection, lines, ref) if adapters else {}
        chosen = range(queued.count) if sample is None else sample.of(queued.count)
        size = queued.size if sample is None else sum(_read_queued(queue, place).size for place in chosen)
        counter = Counter(progress, "reading the stored files", size)
        blobs = (_read_queued(queue, place) for place in chosen)
        size, damaged = _read_all(storage, blobs, len(chosen), counter)
        if adapters:
            problems += _check_adapters(storage, lines, manifests, versions, progress)
    return Verification(
        stored=queued.count, read=len(chosen), bytes=size, versions=versions, damaged=damaged, problems=problems
    )


def _queue_versions(connection: Connection, lines: IO[bytes], ref: str | None) -> dict[str, BaseManifest]:
    """Write the versions in scope, and those that they are pinned to, as lines; return the manifests of their bases."""
    path = None if ref is None else parse_ref(ref).path
    chain = None
    if ref is not None and parse_ref(ref).selector is not None:
        chain = {(version.path, version.number) for version in ancestry(connection, ref)}
    for row, files in queries.exporting.stream_versions(connection, path):
        if chain is None or (row.path, row.number) in chain:
            lines.write(written(version_line(row, files)))
    rows = (row for row, _ in queries.exporting.stream_bases(connection, path))
    return {row.name: read_manifest(row.manifest) for row in rows}


def _check_adapters(
    storage: Storage, lines: IO[bytes], manifests: dict[str, BaseManifest], total: int, progress: Progress
) -> list[str]:
    lines.seek(0)
    problems = _Problems()
    queued = (Recorded.of_line(line) for line in read_lines(cast("BinaryIO", lines), VersionLine, "the queue"))
    checked = AdapterChecks(storage.blobs, manifests).problems(queued)
    counter = Counter(progress, "checking adapters", total, "versions")
    for version, problem in checked:
        if isinstance(problem, Unavailable):
            storage.blobs.size(_ABSENT)  # raises if the whole store does not answer
        if problem is not None:
            problems.add([describe(version, problem)])
        counter.add()
    return problems.to_list()


def _queue_tree(connection: Connection, queue: IO[bytes], path: str | None) -> tuple["_Queued", int, list[str]]:
    """Queue the blobs of a subtree or of the whole registry, and check the rows."""
    if path is not None:
        find_node(connection, path)
    queued = _queue_blobs(queue, queries.verifying.stream_stored(connection, path))
    problems = _Problems()
    for row, _ in queries.exporting.stream_bases(connection, path):
        problems.add(_check_base(row.name, row.digest, read_manifest(row.manifest)))
    versions = 0
    for row, files in queries.exporting.stream_versions(connection, path):
        problems.add(version_line(row, files).problems(row.base_digest))
        versions += 1
    problems.add(queries.verifying.contradictions(connection, path, limit=NAMED))
    return queued, versions, problems.to_list()


def _queue_chain(connection: Connection, queue: IO[bytes], ref: str) -> tuple["_Queued", int, list[str]]:
    """Queue the blobs of a version and its pinned ancestors, and check the digests."""
    chain = ancestry(connection, ref)
    blobs = queries.verifying.find_stored(
        connection, sorted({file.sha256 for version in chain for file in version.files})
    )
    problems = _Problems()
    for version in chain:
        problems.add(version.problems())
    return _queue_blobs(queue, blobs), len(chain), problems.to_list()


class _Problems:
    """A list of at most NAMED clauses, and the count of all of them."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._count = 0

    def add(self, problems: list[str]) -> None:
        self._kept += problems[: NAMED - len(self._kept)]
        self._count += len(problems)

    def to_list(self) -> list[str]:
        more = self._count - len(self._kept)
        return [*self._kept, f"{more} more problems of this kind"] if more else self._kept


def _check_base(name: str, digest: str, manifest: BaseManifest) -> list[str]:
    actual = manifest.digest
    return [] if actual == digest else [f"the base {name} has the digest {digest}, its manifest gives {actual}"]


@dataclass(frozen=True, slots=True)
class _Queued:
    """How many blobs are queued, and their size in bytes."""

    count: int
    size: int


def _queue_blobs(queue: IO[bytes], blobs: Iterable[BlobRow]) -> _Queued:
    """Write the blobs to disk as lines of equal length, so that any line can be read without a list in memory."""
    count = size = 0
    for blob in blobs:
        queue.write(f"{blob.sha256.removeprefix(DIGEST_PREFIX)} {blob.size:020d}\n".encode())
        count, size = count + 1, size + blob.size
    return _Queued(count, size)


def _read_queued(queue: IO[bytes], place: int) -> BlobRow:
    queue.seek(place * _LINE)
    digits, size = queue.read(_LINE).split()
    return BlobRow(DIGEST_PREFIX + digits.decode(), int(size))


def _read_all(storage: Storage, blobs: Iterator[BlobRow], total: int, counter: Counter) -> tuple[int, list[Damage]]:
    """Read the blobs in a few threads, with a short queue before them, and return the bytes and the damage."""
    size, damaged, waiting = 0, [], deque[tuple[BlobRow, Future[str | None]]]()
    with ThreadPoolExecutor(THREADS) as threads, stopping(counter):
        for _ in range(total):
            while len(waiting) < 2 * THREADS and (blob := next(blobs, None)) is not None:
                waiting.append((blob, threads.submit(_check_blob, storage.blobs, blob, counter.add)))
            blob, result = waiting.popleft()
            size += blob.size
            if (problem := result.result()) and (damage := _describe_damage(storage, blob, problem)):
                damaged.append(damage)
    return size, damaged


def _check_blob(blobs: BlobStore, blob: BlobRow, on_read: Tick) -> str | None:
    """Return a clause about a damaged blob, or None if it is intact. Raises Unavailable if no blob can be read."""
    try:
        with blobs.open(blob.sha256) as stream:
            if (stored := blobs.size(blob.sha256) or 0) > blob.size:
                return f"has {counted(stored, 'byte')}"
            digest, size = digest_stream(stream, on_read)
    except NotFound:
        return "is missing"
    except (Unavailable, OSError) as error:
        blobs.size(_ABSENT)  # raises if the whole store does not answer
        return f"cannot be read ({error})"
    if size != blob.size:
        return f"has {counted(size, 'byte')}"
    return None if digest == blob.sha256 else f"holds other bytes, {digest}"


def _describe_damage(storage: Storage, blob: BlobRow, problem: str) -> Damage | None:
    """Return the damage with its users, or None if the blob was collected since it was listed."""
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
