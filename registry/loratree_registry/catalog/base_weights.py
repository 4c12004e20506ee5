"""The weights of a base: stored once, on request, after each tensor was compared with the base's manifest."""

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import Connection

from loratree_registry.blobs.store import BlobStore
from loratree_registry.blobs.verified import has_intact, is_intact
from loratree_registry.catalog.bases import find_base
from loratree_registry.catalog.files import check_uploaded, hold_uploaded, open_stored
from loratree_registry.core.digests import DIGEST_PREFIX, FileDigest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import Base
from loratree_registry.core.strict_json import parse_json
from loratree_registry.database import queries
from loratree_registry.errors import Conflict, Corrupt, Invalid, NotFound, listed
from loratree_registry.tensor_files.checkpoint import INDEX, MAX_INDEX, WEIGHTS, TensorType
from loratree_registry.tensor_files.checkpoint_files import SHARD, check_digests, check_names
from loratree_registry.tensor_files.comparison import differences, misfits
from loratree_registry.tensor_files.header import read_header

_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a stored file: its type and the digest of its bytes."""

    file: str
    type: TensorType
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint in the blob store: its tensors by name, each read once."""

    tensors: dict[str, StoredTensor]

    def types(self) -> dict[str, TensorType]:
        """Return every tensor's dtype code and shape, by name."""
        return {name: tensor.type for name, tensor in self.tensors.items()}

    def sha256(self, name: str) -> str:
        """Return the digest of one tensor's bytes."""
        return self.tensors[name].sha256


def check_storable(connection: Connection, name: str, files: list[FileDigest]) -> bool:
    """Check the files without their bytes. Return False if the base has them. Raises Invalid, NotFound, Conflict."""
    known = list_files(connection, name)
    check_names(files)
    _check_same(name, known, files)
    check_uploaded(connection, files)
    return not known


def check_weights(blobs: BlobStore, files: list[FileDigest], manifest: BaseManifest) -> None:
    """Read the stored files and check that they hold the base's tensors and no others.

    Raises Invalid, naming the tensors that differ from the base, and Corrupt if the store returns damaged bytes.
    """
    shards = [file for file in files if file.name.endswith(SHARD)]
    heads = [tensor for file in shards for tensor in _read_head(blobs, file)]
    places = {(name, tensor.file) for name, tensor in heads}
    expected = _read_index(blobs, files) or {(name, WEIGHTS) for name, _ in heads}
    if wrong := sorted(f"{name} in {file}" for name, file in places ^ expected):
        problem = f"{INDEX} and the files disagree over {listed(wrong, limit=5)}"
        raise Invalid(f"{problem}: save the model again", details=[problem])
    _refuse(misfits(StoredCheckpoint(dict(heads)), manifest))
    checkpoint = StoredCheckpoint(dict(tensor for file in shards for tensor in _read_shard(blobs, file)))
    _refuse([f"{name} has other values" for name in differences(checkpoint, manifest)])


def digests_of(files: list[FileDigest]) -> list[str]:
    """Return the digests of files, each once, sorted. Raises Invalid."""
    check_digests(files)
    return sorted({file.sha256 for file in files})


def hold(connection: Connection, name: str, digests: list[str]) -> dict[str, int]:
    """Return the sizes of the stored blobs among `digests`, which start a new grace period. Raises NotFound."""
    find_base(connection, name)
    return queries.blobs.hold_blobs(connection, digests)


def record(connection: Connection, name: str, files: list[FileDigest]) -> Base:
    """Record checked files as the base's weights; recording the same files again changes nothing. Raises Conflict."""
    base = find_base(connection, name)
    root = queries.nodes.nodes_on_path(connection, name)[0]
    queries.nodes.lock_node(connection, root.id)  # before the read, so that two pushes at the same time record one copy
    known = queries.bases.files_of_base(connection, base.id)
    _check_same(name, known, files)
    if known:
        return base.record()
    hold_uploaded(connection, files)
    queries.bases.insert_base_files(connection, base.id, files)
    queries.events.insert_event(
        connection, name, "base-stored", files=len(files), size=sum(file.size for file in files)
    )
    return find_base(connection, name).record()


def list_files(connection: Connection, name: str) -> list[FileDigest]:
    """Return the files of a base's weights, by name; the list is empty if they are not stored. Raises NotFound."""
    return queries.bases.files_of_base(connection, find_base(connection, name).id)


def find_file(connection: Connection, name: str, file: str) -> FileDigest:
    """Return one file of a base's weights. Raises NotFound."""
    files = {known.name: known for known in list_files(connection, name)}
    if not files:
        raise NotFound(
            f"the weights of the base {name} are not stored: store them with `loratree base push {name} DIR`"
        )
    if file not in files:
        raise NotFound(f"the base {name} has no file {file!r}: it has {listed(sorted(files))}")
    return files[file]


def _check_same(name: str, known: list[FileDigest], files: list[FileDigest]) -> None:
    """Check that the files equal the stored files, if any are stored. Raises Conflict."""
    others = sorted({file.name for file in set(known) ^ set(files)})
    if known and others:
        raise Conflict(f"the base {name} is stored already and as other files: {listed(others, limit=5)}")


def _refuse(problems: list[str]) -> None:
    if problems:
        raise Invalid(
            f"the files do not hold the base: {listed(problems, limit=5)}; give the folder that was added",
            details=problems,
        )


def _read_head(blobs: BlobStore, file: FileDigest) -> list[tuple[str, StoredTensor]]:
    """Return the tensors of a stored file by its header, without digests. Raises Invalid, Corrupt."""
    try:
        with open_stored(blobs, file) as stream:
            tensors = read_header(stream, file.size, name=file.name).tensors
    except Invalid as error:
        if has_intact(blobs, file.sha256, file.size):
            raise
        raise _damage_of(file) from error
    return [(name, StoredTensor(file.name, TensorType(t.dtype, t.shape), "")) for name, t in tensors.items()]


def _read_shard(blobs: BlobStore, file: FileDigest) -> list[tuple[str, StoredTensor]]:
    tensors: list[tuple[str, StoredTensor]] = []

    def read_tensors(stream: BinaryIO) -> None:
        tensors.clear()
        for name, tensor in read_header(stream, file.size, name=file.name).tensors.items():
            digest = _hash(stream, tensor.end - tensor.start)
            tensors.append((name, StoredTensor(file.name, TensorType(tensor.dtype, tensor.shape), digest)))

    with open_stored(blobs, file) as stream:
        if not is_intact(stream, file.sha256, file.size, read_tensors):
            raise _damage_of(file)
    return tensors


def _read_index(blobs: BlobStore, files: list[FileDigest]) -> set[tuple[str, str]]:
    """Return the tensors and their files as the index lists them; the set is empty if there is no index."""
    index = next((file for file in files if file.name == INDEX), None)
    if index is None:
        return set()
    with open_stored(blobs, index) as stream:
        text = stream.read(MAX_INDEX)
    try:
        return {(str(name), str(file)) for name, file in parse_json(text)["weight_map"].items()}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise Invalid(f"{INDEX} is not an index of safetensors files ({error}): save the model again") from error


def _hash(stream: BinaryIO, size: int) -> str:
    hasher = hashlib.sha256()
    while size and (chunk := stream.read(min(size, _CHUNK))):
        hasher.update(chunk)
        size -= len(chunk)
    return DIGEST_PREFIX + hasher.hexdigest()


def _damage_of(file: FileDigest) -> Corrupt:
    return Corrupt(f"the blob {file.sha256} ({file.name}) is damaged where it is stored: send the file again")
