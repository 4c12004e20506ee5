"""A bounded reader of a safetensors header; standard library only.

The format: 8 bytes of little-endian header length, that many bytes of JSON padded with spaces, then the tensors' bytes
without gaps (https://github.com/huggingface/safetensors#format). The reference reader accepts duplicate names (the
last wins), names such as `../../x`, empty tensors and headers of 100 MB. This reader refuses all four.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from loratree_registry.core.manifest import MAX_DIMENSIONS, name_problem
from loratree_registry.core.strict_json import parse_json
from loratree_registry.core.text import counted, shortened
from loratree_registry.disk.plain_files import LFS_POINTER
from loratree_registry.errors import Invalid, listed

ZEROS: Final = "zeros"  # stands for the digest of an undigested tensor in which every bit is 0
MAX_HEADER: Final = 8 * 1024 * 1024
MAX_TENSORS: Final = 65_536  # mixture-of-experts adapters have 36,864

ITEM_SIZES: Final[dict[str, int]] = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

_METADATA = "__metadata__"
_PEEK: Final = 64  # bytes that are looked at to say what a file is
_MAGIC: Final = {  # how files of other formats begin
    b"<": "a page of HTML or XML, such as an error of a download",
    b"{": "JSON, such as a server's error",
    b"PK": "a zip archive, as torch.save writes it: save it with save_pretrained, which writes safetensors",
    b"\x80": "a pickle, as torch.save writes it: save it with save_pretrained, which writes safetensors",
    b"GGUF": "GGUF, which llama.cpp reads",
    b"\x1f\x8b": "a gzip archive",
}
_EMPTY: Final = "is empty"
_GATHER: Final = (
    "DeepSpeed ZeRO-3 leaves empty tensors if one process saves its own part; save with "
    "stage3_gather_16bit_weights_on_model_save, or convert the checkpoint with zero_to_fp32.py"
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's dtype code, its shape, and its place: the bytes [start, end), counted from the file's first byte."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file. `tensors` are in the order of their bytes, from `data_start` to `size`.

    `digest` is the SHA-256 of the header's bytes: if it is equal, so are all names, dtypes, shapes and places.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    data_start: int
    size: int
    digest: bytes


def read_header(stream: BinaryIO, size: int, *, name: str = "the safetensors file") -> Header:
    """Read and check the header of a file of `size` bytes; leave `stream` at the first tensor's first byte.

    `name` is the file's name in messages. `stream` is only read forward, so it may come from a network. The tensors'
    bytes must fill the rest of the file without a hole or an overlap. Raises Invalid, listing every wrong tensor.
    """
    length = _read_length(stream, size, name)
    text = _read_exactly(stream, length)
    if len(text) != length:
        raise Invalid(f"{name} is truncated: its header has {len(text)} of {length} bytes, copy it again")
    document = _parse(text, name)
    metadata = _check_metadata(document.pop(_METADATA, {}), name)
    if not document:
        raise Invalid(
            f"{name} holds no tensors, as a process writes it that holds no part of a sharded model: save the "
            "whole model on the first process, with save_pretrained"
        )
    tensors = _parse_tensors(document, 8 + length, name)
    _check_contiguous(tensors, 8 + length, size, name)
    return Header(tensors, metadata, 8 + length, size, hashlib.sha256(text).digest())


def _read_length(stream: BinaryIO, size: int, name: str) -> int:
    prefix = _read_exactly(stream, 8)
    if len(prefix) < 8:
        raise Invalid(
            f"{name} is truncated: it has {counted(len(prefix), 'byte')}, a safetensors file starts with 8 of length"
        )
    length = int.from_bytes(prefix, "little")
    if length > size - 8 and length > MAX_HEADER:
        raise Invalid(_describe_other(prefix + _read_exactly(stream, _PEEK), name))
    if length > MAX_HEADER:
        raise Invalid(
            f"{name} states a header of {length} bytes, at most {MAX_HEADER} are read: it holds far more tensors than "
            "an adapter"
        )
    if length > size - 8:
        raise Invalid(f"{name} is truncated: its header needs {length} bytes and {size - 8} follow, copy it again")
    return length


def _describe_other(start: bytes, name: str) -> str:
    """Say what a file is that is no safetensors file, by how it begins."""
    if start.startswith(LFS_POINTER):
        return f"{name} is a pointer of git-LFS, not the file itself: run git lfs pull where it was cloned"
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if kind is None and start.isascii() and start.decode().isprintable():
        kind = f"text, such as a server's message ({start.decode().split(chr(10))[0][:40]!a}…)"
    return f"{name} is not a safetensors file, it looks like {kind or 'another format'}: download or save it again"


def _read_exactly(stream: BinaryIO, count: int) -> bytes:
    """Read `count` bytes, or fewer at the end. A raw or network stream may give them in parts."""
    parts = []
    while count and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _parse(text: bytes, name: str) -> dict[str, Any]:
    stripped = text.rstrip(b" ")
    if not (stripped.startswith(b"{") and stripped.endswith(b"}")):
        raise Invalid(f"{name} has no JSON object as its header, padded by nothing but spaces: save it again")
    try:
        document = parse_json(stripped)
    except ValueError as error:
        raise Invalid(f"{name} has a header that is not usable JSON ({error}): save it again") from error
    if not isinstance(document, dict):
        raise Invalid(f"{name} has a header that is not a JSON object: save it again")
    return document


def _check_metadata(value: object, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise Invalid(f"{name} has a {_METADATA} that is not an object of strings: save it again")
    return value


def _parse_tensors(document: dict[str, Any], data_start: int, name: str) -> dict[str, Tensor]:
    if len(document) > MAX_TENSORS:
        raise Invalid(f"{name} names {len(document)} tensors, at most {MAX_TENSORS} are read: it is not an adapter")
    tensors, problems, empty = {}, [], 0
    for key, entry in document.items():
        parsed = name_problem(key) or _parse_tensor(entry, data_start)
        if isinstance(parsed, Tensor):
            tensors[key] = parsed
        else:
            problems.append(f"tensor {shortened(ascii(key))} {parsed}")
            empty += parsed.startswith(_EMPTY)
    if problems:
        remedy = "save the adapter again" if empty <= len(problems) / 2 else _GATHER
        raise Invalid(f"{name} is not usable: {listed(problems, limit=1)}: {remedy}", details=problems)
    return dict(sorted(tensors.items(), key=lambda item: item[1].start))


def _parse_tensor(entry: object, data_start: int) -> Tensor | str:
    """Return the tensor that `entry` describes, or a clause that says what is wrong with it."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "is not described by exactly dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        return f"has the unknown dtype {shortened(ascii(dtype))}, expected one of {', '.join(ITEM_SIZES)}"
    if not _are_naturals(shape) or len(shape) > MAX_DIMENSIONS:
        return f"has the shape {shortened(ascii(shape))}, expected at most {MAX_DIMENSIONS} whole numbers"
    if not _are_naturals(offsets) or len(offsets) != 2:
        return f"has the data_offsets {shortened(ascii(offsets))}, expected its first byte and the one past its last"
    size = math.prod(shape) * ITEM_SIZES[dtype]
    if size == 0:
        return f"{_EMPTY}: its shape is {shape}"
    start, end = offsets
    if end - start != size:
        return f"has {end - start} bytes, {dtype} of shape {shape} takes {size}"
    return Tensor(dtype, tuple(shape), data_start + start, data_start + end)


def _are_naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_contiguous(tensors: dict[str, Tensor], data_start: int, size: int, name: str) -> None:
    position, problems = data_start, []
    for key, tensor in tensors.items():
        if tensor.start != position:
            what = "overlaps the one before it" if tensor.start < position else "leaves a hole before it"
            problems.append(f"tensor {shortened(ascii(key))} {what} (byte {tensor.start}, expected {position})")
        position = max(position, tensor.end)
    if problems:
        raise Invalid(f"{name} is not usable: {listed(problems, limit=3)}: save the adapter again", details=problems)
    if position > size:
        raise Invalid(f"{name} is truncated: its tensors need {position} bytes and it has {size}, copy it again")
    if position < size:
        raise Invalid(f"{name} has {size - position} bytes behind its last tensor, expected none: save it again")
