"""The files of versions: their bytes are in the blob store, their names and digests in the database."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from sqlalchemy import Connection

from loratree_registry.blobs.store import BlobStore
from loratree_registry.catalog.marks import check_above
from loratree_registry.catalog.versions import find_version
from loratree_registry.core.digests import FileDigest
from loratree_registry.database import queries
from loratree_registry.errors import Corrupt, Invalid, NotFound, NotUploaded, listed


def check_uploaded(connection: Connection, files: list[FileDigest]) -> None:
    """Checks that every file's bytes are stored, with the size stated. Raises NotUploaded, Invalid."""
    _check(queries.blobs.blob_sizes(connection, _digests(files)), files)


def hold_uploaded(connection: Connection, files: list[FileDigest]) -> None:
    """Checks the same, and keeps the bytes from being collected until the transaction is over."""
    _check(queries.blobs.hold_blobs(connection, _digests(files)), files)


def record_stored(connection: Connection, sha256: str, size: int, lease: str) -> None:
    """Records bytes that were stored and read back. Raises NotUploaded where their lease ran out meanwhile."""
    if not queries.blobs.record_stored(connection, sha256, size, lease):
        raise NotUploaded(f"sending {sha256} took so long that its bytes were collected meanwhile: send them again")


def find_file(connection: Connection, ref: str, name: str) -> FileDigest:
    """One file of the version that `ref` names. Raises NotFound."""
    version = find_version(connection, ref)
    check_above(connection, version.ref, [version])
    found = {file.name: file for file in queries.versions.files_of(connection, [version.id])[version.id]}
    if name not in found:
        raise NotFound(f"{version.ref} has no file {name!r}: it has {listed(sorted(found))}")
    return found[name]


def check_held(blobs: BlobStore, file: FileDigest) -> None:
    """Checks that the store holds what the database says is stored. Raises Corrupt where it has lost or cut it."""
    held = blobs.size(file.sha256)
    if held != file.size:
        found = "does not hold them" if held is None else f"holds {held}"
        raise Corrupt(
            f"the {file.size} bytes of {file.sha256} are recorded as stored, and the blob store {found}: "
            "restore it from a backup, or upload the file again"
        )


def list_files(connection: Connection, ref: str) -> list[FileDigest]:
    """The files of the version that `ref` names. Raises NotFound."""
    found = find_version(connection, ref)
    return queries.versions.files_of(connection, [found.id])[found.id]


@contextmanager
def open_stored(blobs: BlobStore, file: FileDigest) -> Iterator[BinaryIO]:
    """Opens bytes that the database says are stored. Raises Corrupt where the blob store has lost or cut them."""
    check_held(blobs, file)
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(blobs.open(file.sha256))
        except NotFound as error:  # gone since
            raise Corrupt(f"the bytes of {file.sha256} were removed while they were asked for: try again") from error
        yield stream


def _digests(files: list[FileDigest]) -> list[str]:
    return sorted(file.sha256 for file in files)


def _check(sizes: dict[str, int], files: list[FileDigest]) -> None:
    if missing := [f"{file.name} ({file.sha256})" for file in files if file.sha256 not in sizes]:
        raise NotUploaded(f"these files are not uploaded: {listed(missing)}; upload them, then publish")
    other = [f"{f.name} has {sizes[f.sha256]} bytes, not {f.size}" for f in files if f.size != sizes[f.sha256]]
    if other:
        raise Invalid(f"the sizes stated are not those stored: {listed(other)}")
