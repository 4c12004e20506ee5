"""The files of versions: their bytes are in the blob store, their names and digests in the database."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from sqlalchemy import Connection

from loratree_registry.blobs.store import BlobStore
from loratree_registry.catalog.marks import check_above
from loratree_registry.catalog.versions import find_version
from loratree_registry.core.digests import FileDigest
from loratree_registry.core.documents import Document
from loratree_registry.core.text import counted
from loratree_registry.database import queries
from loratree_registry.errors import Corrupt, Invalid, NotFound, NotUploaded, listed


def check_uploaded(connection: Connection, files: list[FileDigest]) -> None:
    """Check that every file's bytes are stored, with the given size. Raises NotUploaded, Invalid."""
    _check_sizes(queries.blobs.blob_sizes(connection, _digests_of(files)), files)


def hold_uploaded(connection: Connection, files: list[FileDigest]) -> None:
    """Check the files as check_uploaded does, and lock their bytes against collection until the transaction ends."""
    _check_sizes(queries.blobs.hold_blobs(connection, _digests_of(files)), files)


def record_stored(connection: Connection, sha256: str, size: int, lease: str) -> None:
    """Record that bytes were stored and read back. Raises NotUploaded if a collection ended the lease."""
    if not queries.blobs.record_stored(connection, sha256, size, lease):
        raise NotUploaded(f"sending {sha256} took so long that its bytes were collected: send them again")


def find_file(connection: Connection, ref: str, name: str) -> FileDigest:
    """Return one file of the version that `ref` names. Raises NotFound."""
    version = find_version(connection, ref)
    check_above(connection, version.ref, [version])
    stored = {file.name: file for file in queries.versions.files_of(connection, [version.id])[version.id]}
    if name not in stored:
        raise NotFound(f"{version.ref} has no file {name!r}: it has {listed(sorted(stored))}")
    return stored[name]


def list_documents(connection: Connection, ref: str) -> list[Document]:
    """Return the documents of the version that `ref` names, by name. Raises NotFound, Quarantined."""
    version = find_version(connection, ref)
    check_above(connection, version.ref, [version])
    return [Document(*item) for item in sorted(queries.versions.documents_of(connection, version.id).items())]


def check_held(blobs: BlobStore, file: FileDigest) -> None:
    """Check that the store holds a file at its recorded size. Raises Corrupt if the file is lost or truncated."""
    size = blobs.size(file.sha256)
    if size != file.size:
        problem = "does not hold them" if size is None else f"holds {size}"
        raise Corrupt(
            f"the {counted(file.size, 'byte')} of {file.sha256} are recorded as stored, but the blob store {problem}: "
            "restore it from a backup, or upload the file again"
        )


def list_files(connection: Connection, ref: str) -> list[FileDigest]:
    """Return the files of the version that `ref` names. Raises NotFound."""
    version = find_version(connection, ref)
    return queries.versions.files_of(connection, [version.id])[version.id]


@contextmanager
def open_stored(blobs: BlobStore, file: FileDigest) -> Iterator[BinaryIO]:
    """Open a file that the database records as stored. Raises Corrupt if the file is lost or truncated."""
    check_held(blobs, file)
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(blobs.open(file.sha256))
        except NotFound as error:  # removed after the check
            raise Corrupt(f"the bytes of {file.sha256} were removed during this request: try again") from error
        yield stream


def _digests_of(files: list[FileDigest]) -> list[str]:
    return sorted(file.sha256 for file in files)


def _check_sizes(sizes: dict[str, int], files: list[FileDigest]) -> None:
    if missing := [f"{file.name} ({file.sha256})" for file in files if file.sha256 not in sizes]:
        raise NotUploaded(f"these files are not uploaded: {listed(missing)}; upload them, then publish")
    other = [f"{f.name} has {sizes[f.sha256]} bytes, not {f.size}" for f in files if f.size != sizes[f.sha256]]
    if other:  # a digest has one size, so the submission is wrong in itself
        raise Invalid(f"the given sizes are not the stored sizes: {listed(other)}")
