"""Tensors as safetensors stores them: dtype codes, bytes and their digest."""

import hashlib
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from loratree_registry.canonical import DIGEST_PREFIX
from loratree_registry.errors import Invalid

CODES: Final[dict[torch.dtype, str]] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.complex64: "C64",
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's safetensors dtype code and its shape."""

    dtype: str
    shape: tuple[int, ...]


def type_of(tensor: Tensor) -> TensorType:
    """The code and shape under which safetensors stores `tensor`. Raises Invalid where there is no code."""
    if tensor.dtype not in CODES:
        raise Invalid(f"{tensor.dtype} has no place in a base: expected one of {', '.join(map(str, CODES))}")
    return TensorType(CODES[tensor.dtype], tuple(tensor.shape))


def digest_of(tensor: Tensor) -> str:
    """The digest over the tensor's bytes, little-endian and row-major, wherever it lives."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return DIGEST_PREFIX + hashlib.sha256(flat.view(torch.uint8).numpy().data).hexdigest()
