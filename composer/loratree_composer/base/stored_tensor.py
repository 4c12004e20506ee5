"""Tensors as safetensors stores them: dtype codes, bytes and digests."""

import hashlib
from typing import Final

import torch
from torch import Tensor

from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.errors import Invalid
from loratree_registry.tensor_files.checkpoint import Checkpoint, TensorType

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
DTYPES: Final = {code: dtype for dtype, code in CODES.items()}


def type_of(tensor: Tensor) -> TensorType:
    """Return the dtype code and shape of `tensor` in safetensors. Raises Invalid if its dtype has no code."""
    if tensor.dtype not in CODES:
        raise Invalid(f"{tensor.dtype} is not a dtype of a base: expected one of {', '.join(map(str, CODES))}")
    return TensorType(CODES[tensor.dtype], tuple(tensor.shape))


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the tensor's bytes, little-endian and row-major, from any device."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def tensor_of(raw: bytearray, kind: TensorType) -> Tensor:
    """Return a tensor that uses `raw` as its memory. Raises Invalid if `kind` has a dtype that is not in DTYPES."""
    if kind.dtype not in DTYPES:
        raise Invalid(f"{kind.dtype} is not a dtype that can be composed: expected one of {', '.join(DTYPES)}")
    return torch.frombuffer(raw, dtype=DTYPES[kind.dtype]).reshape(kind.shape)


def read_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """Read one tensor of a checkpoint to the CPU. Raises Invalid if it cannot be read."""
    shard = checkpoint.shard_of[name]
    return tensor_of(shard.raw(name), shard.type(name))


def digest_of(tensor: Tensor) -> str:
    """Return the digest of the tensor's bytes."""
    return DIGEST_PREFIX + hashlib.sha256(bytes_of(tensor)).hexdigest()
