"""A check that every value of a safetensors file is finite, by bit pattern, in bounded memory."""

import hashlib
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.core.text import counted
from loratree_registry.errors import Invalid, listed
from loratree_registry.tensor_files.header import ZEROS, Header, Tensor

CHUNK: Final = 1024 * 1024  # bytes; a multiple of every item's size

# dtype code → the unsigned integer of its width, and its exponent's bits, which are all set only in NaN and ±Inf.
_EXPONENTS: Final[dict[str, tuple[str, int]]] = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F80_0000),
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
}
# Always finite. A saved module's buffers hold such counters and masks.
_WHOLE: Final = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})


def check_finite(
    stream: BinaryIO, header: Header, *, undigested: tuple[str, ...] = (), name: str = "the safetensors file"
) -> dict[str, str]:
    """Read every tensor and return its digest by its name.

    A tensor whose name ends with one of `undigested` gets ZEROS if it holds only zeros, and no entry otherwise.
    `stream` stands at `header.data_start`, where read_header left it, and is read forward to its end. Raises Invalid,
    naming each tensor that holds NaN or Inf, or has a dtype that cannot be checked: any other than F16, BF16, F32, F64
    and the whole numbers.
    """
    checked = _EXPONENTS.keys() | _WHOLE
    unchecked = [f"{key} is {tensor.dtype}" for key, tensor in header.tensors.items() if tensor.dtype not in checked]
    if unchecked:
        raise Invalid(
            f"{name} holds values other than {', '.join(_EXPONENTS)} and whole numbers: {listed(unchecked, limit=5)}: "
            "cast and save again",
            details=unchecked,
        )
    problems, digests = [], {}
    for key, tensor in header.tensors.items():
        hasher = None if key.endswith(undigested) else hashlib.sha256()
        nans, infinities, is_zero = _count(stream, tensor, name, hasher)
        if hasher:
            digests[key] = DIGEST_PREFIX + hasher.hexdigest()
        elif is_zero:
            digests[key] = ZEROS
        if nans or infinities:
            problems.append(f"{key} holds {nans} NaN and {infinities} Inf")
    if problems:
        raise Invalid(
            f"{name} holds values that are not finite: {listed(problems, limit=5)}: train again or drop them",
            details=problems,
        )
    return digests


def _count(stream: BinaryIO, tensor: Tensor, name: str, hasher: "hashlib._Hash | None") -> tuple[int, int, bool]:
    """Count the NaN and the ±Inf in the next tensor of the stream, and tell whether every bit is 0."""
    code, exponent = _EXPONENTS.get(tensor.dtype, ("u1", None))
    nans, infinities, is_zero = 0, 0, True
    remaining = tensor.end - tensor.start
    while remaining:
        chunk = _read_chunk(stream, min(remaining, CHUNK), name)
        if hasher:
            hasher.update(chunk)
        bits: NDArray[Any] = np.frombuffer(chunk, dtype=code)
        remaining -= bits.nbytes
        is_zero = is_zero and not bits.any()
        if exponent is None or (bits & exponent).max() < exponent:
            continue
        suspects = bits[bits & exponent == exponent]
        sign_bit = 1 << (bits.itemsize * 8 - 1)
        infinite = int(np.count_nonzero(suspects & (sign_bit - 1) == exponent))
        infinities += infinite
        nans += len(suspects) - infinite
    return nans, infinities, is_zero


def _read_chunk(stream: BinaryIO, count: int, name: str) -> bytes:
    parts = []
    while count:
        part = stream.read(count)
        if not part:
            raise Invalid(f"{name} ended {counted(count, 'byte')} early while its values were checked: copy it again")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
