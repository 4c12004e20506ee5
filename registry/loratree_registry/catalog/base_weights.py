"""A base's weights in the registry: stored once, on request, and the base's own tensor by tensor."""

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

from sqlalchemy import Connection

from loratree_registry.blobs.store import BlobStore
from loratree_registry.blobs.verified import intact
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
    """A tensor of a stored file."""

    file: str
    type: TensorType
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """Every tensor of a checkpoint in the blob store, each read once."""

    tensors: dict[str, StoredTensor]

    def types(self) -> dict[str, TensorType]:
        """Every tensor's dtype code and shape."""
        return {name: tensor.type for name, tensor in self.tensors.items()}

    def sha256(self, name: str) -> str:
        """The digest over one tensor's bytes."""
        return self.tensors[name].sha256


def check_storable(connection: Connection, name: str, files: list[FileDigest]) -> bool:
    """Checks what needs no byte to be read; False where these files are stored already.

    Raises Invalid, NotFound, Conflict.
    """
    known = list_files(connection, name)
    check_names(files)
    _check_same(name, known, files)
    check_uploaded(connection, files)
    return not known


def check_weights(blobs: BlobStore, files: list[FileDigest], manifest: BaseManifest) -> None:
    """Reads the stored files and checks that they hold the base's tensors and no others.

    Raises Invalid, which names every tensor that is not the base's, and Corrupt where the store gave back other bytes.
    """
    found = [tensor for file in files if file.name.endswith(SHARD) for tensor in _read_shard(blobs, file)]
    places = {(name, tensor.file) for name, tensor in found}
    expected = _places(blobs, files) or {(name, WEIGHTS) for name, _ in found}
    if wrong := sorted(f"{name} in {file}" for name, file in places ^ expected):
        raise Invalid(f"{INDEX} and the files disagree over {listed(wrong, limit=5)}: save the model again")
    checkpoint = StoredCheckpoint(dict(found))
    problems = misfits(checkpoint, manifest)
    problems = problems or [f"{name} has other values" for name in differences(checkpoint, manifest)]
    if problems:
        raise Invalid(f"the files do not hold the base: {listed(problems, limit=5)}; give the folder that was added")


def missing(connection: Connection, name: str, files: list[FileDigest]) -> list[FileDigest]:
    """Those of the files that have to be sent yet; the others are kept from being collected for a grace."""
    find_base(connection, name)
    check_digests(files)
    sizes = queries.blobs.hold_blobs(connection, sorted(file.sha256 for file in files))
    return [file for file in files if sizes.get(file.sha256) != file.size]


def record(connection: Connection, name: str, files: list[FileDigest]) -> Base:
    """Records checked files as the base's weights; the same ones again change nothing. Raises Conflict."""
    base = find_base(connection, name)
    root = queries.nodes.nodes_on_path(connection, name)[0]
    queries.nodes.lock_node(connection, root.id)  # before looking: two who push the same at once have stored it once
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
    """The files of a base's weights, by name; none where they are not stored. Raises NotFound."""
    return queries.bases.files_of_base(connection, find_base(connection, name).id)


def find_file(connection: Connection, name: str, file: str) -> FileDigest:
    """One file of a base's weights. Raises NotFound."""
    found = {known.name: known for known in list_files(connection, name)}
    if not found:
        raise NotFound(
            f"the weights of the base {name} are not stored: store them with `loratree base push {name} DIR`"
        )
    if file not in found:
        raise NotFound(f"the base {name} has no file {file!r}: it has {listed(sorted(found))}")
    return found[file]


def _check_same(name: str, known: list[FileDigest], files: list[FileDigest]) -> None:
    """Checks that the files are those that are stored, if any are. Raises Conflict."""
    others = sorted({file.name for file in set(known) ^ set(files)})
    if known and others:
        raise Conflict(f"the base {name} is stored already and as other files: {listed(others, limit=5)}")


def _read_shard(blobs: BlobStore, file: FileDigest) -> list[tuple[str, StoredTensor]]:
    found: list[tuple[str, StoredTensor]] = []

    def look(stream: BinaryIO) -> None:
        found.clear()
        for name, tensor in read_header(stream, file.size, name=file.name).tensors.items():
            digest = _digest(stream, tensor.end - tensor.start)
            found.append((name, StoredTensor(file.name, TensorType(tensor.dtype, tensor.shape), digest)))

    with open_stored(blobs, file) as stream:
        if not intact(stream, file.sha256, file.size, look):
            raise _damaged(file)
    return found


def _places(blobs: BlobStore, files: list[FileDigest]) -> set[tuple[str, str]]:
    """Each tensor and its file, as the index says; none where there is no index."""
    index = next((file for file in files if file.name == INDEX), None)
    if index is None:
        return set()
    with open_stored(blobs, index) as stream:
        text = stream.read(MAX_INDEX)
    try:
        return {(str(name), str(file)) for name, file in parse_json(text)["weight_map"].items()}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise Invalid(f"{INDEX} is not an index of safetensors files ({error}): save the model again") from error


def _digest(stream: BinaryIO, left: int) -> str:
    hasher = hashlib.sha256()
    while left and (chunk := stream.read(min(left, _CHUNK))):
        hasher.update(chunk)
        left -= len(chunk)
    return DIGEST_PREFIX + hasher.hexdigest()


def _damaged(file: FileDigest) -> Corrupt:
    return Corrupt(f"the blob {file.sha256} ({file.name}) is damaged where it is stored: send the file again")
