"""The results of one pass over an adapter's weights, cached for the publish that follows an upload."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
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
    """The header of a safetensors file in which every value is finite, and the digests that check_finite returns."""

    header: Header
    digests: dict[str, str]


def inspect(
    stream: BinaryIO, size: int, name: str, *, check: Callable[[Header], object] = lambda _: None
) -> Inspection:
    """Read a safetensors file of `size` bytes forward to its end; `check` sees the header first. Raises Invalid."""
    from loratree_registry.tensor_files.finite import check_finite  # imports numpy, which a listing does not need

    header = read_header(stream, size, name=name)
    check(header)
    return Inspection(header, check_finite(stream, header, undigested=FACTORS, name=name))


class Inspections:
    """A cache of inspections by digest.

    An upload reads the stored bytes back and inspects them on the way, so that publishing need not read them again
    (docs/decisions/0013). The cache holds at most KEPT inspections, each for KEPT_S seconds; it is thread-safe.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, Inspection]] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def keeping(self, digest: str, size: int) -> Iterator[ReadBack]:
        """Yield a function that inspects the bytes of `digest`, and cache its last result if the block succeeds.

        A block that fails does not prove that the bytes have this digest. Publishing refuses a file that is no adapter.
        """
        seen: list[Inspection] = []

        def inspect_bytes(stream: BinaryIO) -> None:
            seen.clear()
            with suppress(Invalid):
                seen.append(inspect(stream, size, digest))

        yield inspect_bytes
        for inspection in seen:
            self._keep(digest, inspection)

    def kept(self, file: FileDigest) -> Inspection | None:
        """Return the cached inspection of a file, or None if there is none or it is too old."""
        with self._lock:
            read_at, inspection = self._kept.get(file.sha256, (-KEPT_S, None))
        return inspection if time.monotonic() - read_at < KEPT_S else None

    def read(self, blobs: BlobStore, file: FileDigest, check: Callable[[Header], object]) -> Inspection:
        """Read, inspect and hash a stored file now; `check` sees its header first. Raises Invalid, Corrupt."""
        with open_stored(blobs, file) as stream, hashing(stream) as hashed:
            inspection = inspect(hashed.stream, file.size, file.name, check=check)
            actual = hashed.finish()
        if actual != (file.sha256, file.size):
            raise Corrupt(f"the blob {file.sha256} is damaged where it is stored: upload the file again")
        return inspection

    def _keep(self, digest: str, inspection: Inspection) -> None:
        with self._lock:
            self._kept[digest] = (time.monotonic(), inspection)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
