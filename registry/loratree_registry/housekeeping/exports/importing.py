"""Import of an export into this registry, with its numbers, times, marks and digests, whole or not at all.

As in publishing, bytes come before rows. A trial first checks all rows in a transaction that is rolled back. Then the
bytes are leased, stored, read back and recorded, and each adapter is checked as publish checks it. Last, one
transaction adds the rows. A second run continues a first.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loratree_registry.blobs.counted import counted
from loratree_registry.catalog.base_weights import check_weights
from loratree_registry.catalog.bases import find_base
from loratree_registry.catalog.files import record_stored
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.progress import Counter, Progress, silent, stopping
from loratree_registry.core.records import Base
from loratree_registry.database import queries
from loratree_registry.database.engine import reading, trying, writing
from loratree_registry.embedded.storage import Storage
from loratree_registry.errors import Corrupt, Invalid, NotUploaded, Unavailable, listed
from loratree_registry.housekeeping.adapter_checks import AdapterChecks, Recorded, describe
from loratree_registry.housekeeping.exports.format import BlobLine
from loratree_registry.housekeeping.exports.import_report import chunks
from loratree_registry.housekeeping.exports.import_rows import RowImporter
from loratree_registry.housekeeping.exports.reading import Export, Open, open_export
from loratree_registry.tensor_files.checkpoint_files import check_names

_AT_ONCE = 32  # blobs that one transaction leases or records
_THREADS = 4
_SOUND: Final = "export it again from a sound registry"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The result of an import: counts of added and of existing records, by kind, and the differences that remain.

    `warnings` are about added records.
    """

    path: str | None
    added: dict[str, int]
    kept: dict[str, int]
    bytes: int
    differences: list[str]
    warnings: list[str]


def _say_none(_bases: list[Base]) -> None:
    """Say nothing."""


def import_(
    storage: Storage, where: Path, *, progress: Progress = silent, on_bases: Callable[[list[Base]], object] = _say_none
) -> Imported:
    """Add the export in the folder or .tar file `where`. Nothing becomes visible before everything is verified.

    An existing version with the same digest stays as it is. At the end, `on_bases` gets the export's bases as they are
    in this registry now. Raises NotFound, Invalid if the export is incomplete or wrong, Conflict listing what
    contradicts this registry, Unavailable.
    """
    with open_export(where) as export:
        with trying(storage.engine) as connection:
            trial = RowImporter(connection, export, trial=True)
            trial.add(progress, "checking")
        size = (
            _store_blobs(storage, export, Counter(progress, "storing the files", trial.listed_bytes))
            if trial.report.added["versions"] or trial.report.added["weights"]
            else 0
        )
        _check_weights(storage, export)
        new = trial.report.added["versions"]
        _check_adapters(storage, export, Counter(progress, "checking adapters", new, "versions"))
        with writing(storage.engine) as connection:
            importer = RowImporter(connection, export, trial=False)
            importer.add(progress, "adding")
            bases = [find_base(connection, name).record() for name in importer.bases]
    on_bases(bases)
    return Imported(
        path=export.header.path,
        added=dict(importer.report.added),
        kept=dict(importer.report.kept),
        bytes=size,
        differences=importer.report.differences,
        warnings=importer.report.warnings,
    )


def _check_weights(storage: Storage, export: Export) -> None:
    """Check the weights of each base that has no stored weights yet against its manifest, one tensor at a time."""
    for line in export.lines("bases"):
        if not line.files:
            continue
        with reading(storage.engine) as connection:
            base = queries.bases.find_base(connection, line.name)
            stored = base is not None and queries.bases.files_of_base(connection, base.id)
        if not stored:
            files = [FileDigest(file.name, file.size, file.sha256) for file in line.files]
            try:
                check_names(files)
                check_weights(storage.blobs, files, line.manifest)
            except Invalid as error:
                problems = listed(error.details, limit=5) or error
                raise Invalid(
                    f"the export's weights of the base {line.name} are not its own: {problems}; {_SOUND}"
                ) from error
            except Corrupt as error:
                raise _damaged_here(f"the weights of the base {line.name}") from error


def _check_adapters(storage: Storage, export: Export, counter: Counter) -> None:
    """Check each version that is not here yet as if it were published: what publish refuses, import refuses.

    Reads the bytes that were stored. Raises Invalid.
    """
    checks = AdapterChecks(storage.blobs, {line.name: line.manifest for line in export.lines("bases")})
    for version, problem in checks.problems(_find_new(storage, export, checks)):
        if isinstance(problem, Corrupt):
            raise _damaged_here(version.ref) from problem
        if isinstance(problem, Invalid):
            raise Invalid(f"the export's {describe(version, problem)}; {_SOUND}") from problem
        if problem is not None:
            raise problem
        counter.add()


def _damaged_here(what: str) -> Corrupt:
    """Return the error for bytes that were stored here before, and that the export's own bytes did not replace."""
    return Corrupt(
        f"{what} cannot be checked, as this registry's own blob store lost or changed the bytes: `loratree verify` "
        "lists what is damaged"
    )


def _find_new(storage: Storage, export: Export, checks: AdapterChecks) -> Iterator[Recorded]:
    """Yield the versions of the export that are not in this registry."""
    for lines in chunks(export.lines("versions")):
        recorded = [Recorded.of_line(line) for line in lines]
        with reading(storage.engine) as connection:
            keys = {key for version in recorded for key in (version.key, version.pin) if key}
            here = queries.importing.kept_versions(connection, keys)
            new = [version for version in recorded if version.key not in here]
            pins = {version.pin for version in new if version.pin in here}
            nodes = queries.importing.kept_nodes(connection, {pin[0] for pin in pins if pin})
            # Whether the chain of a version that is here takes ties apart is known here, whatever the export says.
            for path, number in filter(None, pins):
                chain = queries.versions.pinned_chain(connection, nodes[path].id, number)
                if any(row.adapter().unties for row in chain):
                    checks.take_apart((path, number))
        yield from new


def _store_blobs(storage: Storage, export: Export, counter: Counter) -> int:
    """Store the blobs that are not stored yet, and return their total size in bytes."""
    size = 0
    with ThreadPoolExecutor(_THREADS) as threads, stopping(counter):
        for chunk in chunks(export.blobs(), _AT_ONCE):
            leased = _lease(storage, chunk)
            for _ in threads.map(lambda taken: _put(storage, export, taken, counter), leased):
                pass  # the loop raises the errors of the threads
            try:
                with writing(storage.engine) as connection:
                    for taken in leased:
                        record_stored(connection, taken.blob.sha256, taken.blob.size, taken.lease)
            except NotUploaded as error:
                raise Unavailable("blobs were collected during the import: import the export again") from error
            size += sum(taken.blob.size for taken in leased)
            counter.add(sum(blob.size for blob, _ in chunk) - sum(taken.blob.size for taken in leased))
    return size


@dataclass(frozen=True, slots=True)
class _Leased:
    """A blob to be stored, the function that opens it, and the lease under which it is stored."""

    blob: BlobLine
    open: Open
    lease: str


def _lease(storage: Storage, chunk: list[tuple[BlobLine, Open]]) -> list[_Leased]:
    """Lease the blobs that are not stored, and return them; hold the others, so that nobody collects them."""
    sizes = {blob.sha256: storage.blobs.size(blob.sha256) for blob, _ in chunk}
    with writing(storage.engine) as connection:
        recorded = queries.blobs.hold_blobs(connection, [blob.sha256 for blob, _ in chunk])
        return [
            _Leased(blob, source, queries.blobs.lease_blob(connection, blob.sha256, blob.size))
            for blob, source in chunk
            if not recorded.get(blob.sha256) == sizes[blob.sha256] == blob.size
        ]


def _put(storage: Storage, export: Export, taken: _Leased, counter: Counter) -> None:
    with taken.open() as stream:
        try:
            storage.blobs.put(taken.blob.sha256, taken.blob.size, counted(stream, counter.add))
        except Invalid as error:  # its remedy is for whoever uploads
            raise export.describe_damage(taken.blob, taken.open) from error
