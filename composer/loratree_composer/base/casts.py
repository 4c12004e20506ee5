"""Digests of a base's embeddings and heads in other dtypes, to recognise the copies that PEFT saves of them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from torch import Tensor, nn

from loratree_composer.base.stored_tensor import DTYPES, bytes_of
from loratree_composer.base.token_ties import find_embedding
from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.tensor_files.checkpoint import TensorType
from loratree_registry.tensor_files.comparison import TensorSource

CASTS: Final = ("F32", "BF16", "F16")  # the dtypes that models are trained in


class Tensors(TensorSource, Protocol):
    """A source that gives the values too."""

    def pieces(self, name: str) -> Iterator[Tensor]:
        """Yield the values of one tensor in row-major order, a million or so at a time."""
        ...


def cast_digests(
    module: nn.Module, source: Tensors, firsts: Mapping[str, str], types: Mapping[str, TensorType]
) -> dict[str, dict[str, str]]:
    """Return the digests in other dtypes of the input and output embeddings, by first name.

    `firsts` maps each name to the first name of its tensor, and `types` has the names that `source` holds.
    """
    layers = [find_embedding(module, getter) for getter in ("get_input_embeddings", "get_output_embeddings")]
    names = {firsts[name] for name in firsts if name.rpartition(".")[0] in layers}
    casts = {}
    for first in sorted(names):
        stored = next(name for name in types if firsts[name] == first)
        if types[stored].dtype in CASTS:
            casts[first] = _hash_casts(source.pieces(stored), [code for code in CASTS if code != types[stored].dtype])
    return casts


def _hash_casts(pieces: Iterator[Tensor], codes: Sequence[str]) -> dict[str, str]:
    """Return the digest of a tensor in each dtype of `codes`, with one piece in memory at a time."""
    hashers = {code: hashlib.sha256() for code in codes}
    for piece in pieces:
        for code, hasher in hashers.items():
            hasher.update(bytes_of(piece.to(DTYPES[code])))
    return {code: DIGEST_PREFIX + hasher.hexdigest() for code, hasher in hashers.items()}
