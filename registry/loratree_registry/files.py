"""The files of versions: their bytes are in the blob store, their names and digests in the database."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO

from sqlalchemy import Connection

from loratree_registry import repository
from loratree_registry.blobs.store import BlobStore
from loratree_registry.composition import FileDigest
from loratree_registry.errors import Corrupt, Invalid, NotFound, listed
from loratree_registry.versions import find_version


def check_uploaded(connection: Connection, files: list[FileDigest]) -> None:
    """Checks that every file's bytes are stored, with the size stated. Raises NotFound, Invalid."""
    sizes = repository.blob_sizes(connection, [file.sha256 for file in files])
    if missing := [f"{file.name} ({file.sha256})" for file in files if file.sha256 not in sizes]:
        raise NotFound(f"these files are not uploaded: {listed(missing)}; upload them, then publish")
    other = [f"{f.name} has {sizes[f.sha256]} bytes, not {f.size}" for f in files if f.size != sizes[f.sha256]]
    if other:
        raise Invalid(f"the sizes stated are not those stored: {listed(other)}")


def file_digest(connection: Connection, ref: str, name: str) -> str:
    """The digest of one file of the version that `ref` names. Raises NotFound."""
    version = find_version(connection, ref)
    found = {file.name: file.sha256 for file in repository.files_of(connection, [version.id])[version.id]}
    if name not in found:
        raise NotFound(f"{version.ref} has no file {name!r}: it has {listed(sorted(found))}")
    return found[name]


@contextmanager
def open_stored(blobs: BlobStore, digest: str) -> Iterator[BinaryIO]:
    """Opens bytes that the database says are stored. Raises Corrupt where the blob store has lost them."""
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(blobs.open(digest))
        except NotFound as error:
            raise Corrupt(
                f"the bytes of {digest} are recorded as stored, and the blob store does not hold them: "
                "restore it from a backup, or upload the file again"
            ) from error
        yield stream
