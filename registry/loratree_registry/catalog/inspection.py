"""What one pass over an adapter's weights tells of them, kept for the publish that follows an upload."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Final

from loratree_registry.blobs.hashing import hashing
from loratree_registry.blobs.store import BlobStore, ReadBack
from loratree_registry.catalog.files import open_stored
from loratree_registry.core.digests import FileDigest
from loratree_registry.errors import Corrupt, Invalid
from loratree_registry.peft_format.tensors import FACTORS
from loratree_registry.tensor_files.header import Header, read_header

KEPT: Final = 64
KEPT_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Inspection:
    """The header of a safetensors file, every value of which is finite, and digests as check_finite gives them."""

    header: Header
    digests: dict[str, str]


def inspect(stream: BinaryIO, size: int, name: str) -> Inspection:
    """Reads a safetensors file of `size` bytes forward to its end. Raises Invalid."""
    from loratree_registry.tensor_files.finite import check_finite  # numpy, which a listing does without

    header = read_header(stream, size, name=name)
    return Inspection(header, check_finite(stream, header, undigested=FACTORS, name=name))


class Inspections:
    """The inspections of bytes that were read back lately, by digest, so that publishing need not read them again.

    At most KEPT of them, each for KEPT_S seconds; for many threads at once.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, Inspection]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def keeping(self, digest: str, size: int) -> Iterator[ReadBack]:
        """Inspects what is read back as `digest`, and keeps what it saw last where the block ends well.

        Only then have those bytes that digest. What is no adapter is left for publishing to refuse.
        """
        seen: list[Inspection] = []

        def look(stream: BinaryIO) -> None:
            seen.clear()
            with suppress(Invalid):
                seen.append(inspect(stream, size, digest))

        yield look
        for inspection in seen:
            self._keep(digest, inspection)

    def kept(self, file: FileDigest) -> Inspection | None:
        """What the file held when it was read back, None where that is long ago."""
        with self._lock:
            read_at, found = self._kept.get(file.sha256, (-KEPT_S, None))
        return found if time.monotonic() - read_at < KEPT_S else None

    def read(self, blobs: BlobStore, file: FileDigest) -> Inspection:
        """What the file holds, read now and hashed. Raises Invalid, Corrupt."""
        with open_stored(blobs, file) as stream, hashing(stream) as hashed:
            inspection = inspect(hashed.stream, file.size, file.name)
            found = hashed.finish()
        if found != (file.sha256, file.size):
            raise Corrupt(f"the blob {file.sha256} is damaged where it is stored: upload the file again")
        return inspection

    def _keep(self, digest: str, inspection: Inspection) -> None:
        with self._lock:
            self._kept[digest] = (time.monotonic(), inspection)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
