"""A base's checkpoint on disk: safetensors shards, read one tensor at a time."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from loratree_registry.core.digests import DIGEST_PREFIX, digest_stream
from loratree_registry.core.progress import Counter, Progress, Tick, silent, uncounted
from loratree_registry.core.strict_json import parse_json
from loratree_registry.disk.plain_files import check_inside, check_links, open_plain, plain_path, read_plain
from loratree_registry.errors import Invalid, NotFound, listed
from loratree_registry.tensor_files.header import Header, read_header

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
RESAVE: Final = "load the model with transformers and write it again with save_pretrained"
MAX_INDEX: Final = 64 * 1024 * 1024  # enough for 600,000 tensors: a name and its shard take about 100 bytes
_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's safetensors dtype code and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file of a checkpoint. Every method raises Invalid if the file cannot be read."""

    path: Path
    header: Header
    on_read: Tick = field(default=uncounted, compare=False, repr=False)

    def head(self) -> bytes:
        """Return the bytes before the first tensor: the header, unchanged."""
        return bytes(self._read(0, self.header.data_start))

    def chunks(self, name: str) -> Iterator[bytearray]:
        """Yield one tensor's bytes in chunks of at most 1 MiB."""
        tensor = self.header.tensors[name]
        for start in range(tensor.start, tensor.end, _CHUNK):
            yield self._read(start, min(_CHUNK, tensor.end - start))

    def raw(self, name: str) -> bytearray:
        """Return one tensor's bytes."""
        tensor = self.header.tensors[name]
        return self._read(tensor.start, tensor.end - tensor.start)

    def type(self, name: str) -> TensorType:
        """Return one tensor's dtype code and shape."""
        tensor = self.header.tensors[name]
        return TensorType(tensor.dtype, tensor.shape)

    def sha256(self, name: str) -> str:
        """Return the digest over one tensor's bytes in the file."""
        hasher = hashlib.sha256()
        for chunk in self.chunks(name):
            hasher.update(chunk)
        return DIGEST_PREFIX + hasher.hexdigest()

    def hash_file(self) -> str:
        """Return the digest over the file's bytes."""
        with open_plain(self.path, remedy=RESAVE) as stream:
            return digest_stream(stream, self.on_read)[0]

    def _read(self, start: int, size: int) -> bytearray:
        content = bytearray(size)
        try:
            with open_plain(self.path, remedy=RESAVE) as stream:
                stream.seek(start)
                read = stream.readinto(content)
        except Invalid as error:
            if os.path.lexists(self.path):
                raise
            raise Invalid(f"{self.path} was removed while it was in use: run the same command again") from error
        if read != size:
            raise Invalid(f"{self.path} became shorter while it was read: do not change it, and try again")
        self.on_read(read)
        return content


@dataclass(frozen=True)
class Checkpoint:
    """The shards of a base. Every tensor is in one shard, and no digest depends on which one."""

    directory: Path
    shards: tuple[Shard, ...]

    @cached_property
    def shard_of(self) -> dict[str, Shard]:
        """The shard of each tensor, by the tensor's name."""
        return {name: shard for shard in self.shards for name in shard.header.tensors}

    def types(self) -> dict[str, TensorType]:
        """Return every tensor's dtype code and shape, by name."""
        return {name: shard.type(name) for name, shard in self.shard_of.items()}

    def sha256(self, name: str) -> str:
        """Return the digest over one tensor's bytes."""
        return self.shard_of[name].sha256(name)

    @property
    def size(self) -> int:
        """The size of its tensors in bytes."""
        return sum(shard.header.size - shard.header.data_start for shard in self.shards)

    def telling(self, progress: Progress, what: str) -> "Checkpoint":
        """Return this checkpoint as one that tells `progress` how much of it was read, from now on."""
        if progress is silent:
            return self
        counter = Counter(progress, what, self.size)
        return Checkpoint(self.directory, tuple(replace(shard, on_read=counter.add) for shard in self.shards))

    def hash_files(self) -> dict[str, str]:
        """Return the digest over the bytes of each file of tensors, by the file's name."""
        return {shard.path.name: shard.hash_file() for shard in self.shards}


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read the headers of the safetensors files in `directory`, out of which no link may lead.

    Raises Invalid, NotFound.
    """
    if not directory.is_dir():
        raise NotFound(f"{directory} is not a directory: give the folder of the base's checkpoint")
    try:
        check_links(directory)
        check_inside(directory)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise Invalid(f"{directory} cannot be read ({getattr(error, 'strerror', None) or error}): {RESAVE}") from error
    single, index = directory / WEIGHTS, directory / INDEX
    if single.is_file():
        return Checkpoint(directory, (_read_shard(single),))
    if not index.is_file():
        raise Invalid(_describe_missing_weights(directory))
    places = _read_weight_map(index)
    shards = tuple(_read_shard(directory / name) for name in sorted(set(places.values())))
    _check_index(index, places, shards)
    return Checkpoint(directory, shards)


def _read_shard(path: Path) -> Shard:
    try:
        with open_plain(path, remedy=RESAVE) as stream:
            return Shard(path, read_header(stream, os.fstat(stream.fileno()).st_size, name=str(path)))
    except OSError as error:
        raise Invalid(f"{path} cannot be read ({error.strerror}): {RESAVE}") from error


def _describe_missing_weights(directory: Path) -> str:
    pickled = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLED)
    if pickled:
        return (
            f"{directory} holds pickled weights ({listed(pickled, limit=3)}), which can run code when they are read, "
            f"and no {WEIGHTS}: {RESAVE}"
        )
    return f"{directory} holds neither {WEIGHTS} nor {INDEX}: {RESAVE}"


def _read_weight_map(index: Path) -> dict[str, str]:
    try:
        places = parse_json(read_plain(index, limit=MAX_INDEX, remedy=RESAVE))["weight_map"]
        names = {str(name) for name in places.values()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Invalid(f"{index} is not an index of safetensors files ({error}): {RESAVE}") from error
    for name in sorted(names):
        plain_path(index.parent, name, source=str(index))
    outside = sorted(name for name in names if not name.endswith(".safetensors"))
    if outside or not names:
        raise Invalid(f"{index} must name safetensors files beside it, got {listed(outside) or 'none'}: {RESAVE}")
    return dict(places)


def _check_index(index: Path, places: dict[str, str], shards: tuple[Shard, ...]) -> None:
    """Check that the shards hold exactly the tensors that the index lists, each one once."""
    actual = {(name, shard.path.name) for shard in shards for name in shard.header.tensors}
    wrong = sorted(f"{name} in {shard}" for name, shard in actual ^ set(places.items()))
    if wrong:
        raise Invalid(f"{index} and its files disagree over {listed(wrong, limit=5)}: {RESAVE}", details=wrong)
