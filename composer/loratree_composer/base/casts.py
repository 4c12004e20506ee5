"""Digests of a base's embeddings and heads in other dtypes, to recognise the copies that PEFT saves of them."""

from collections.abc import Mapping
from typing import Final, Protocol

from torch import Tensor, nn

from loratree_composer.base.stored_tensor import DTYPES, digest_of
from loratree_composer.base.token_ties import find_embedding
from loratree_registry.tensor_files.checkpoint import TensorType
from loratree_registry.tensor_files.comparison import TensorSource

CASTS: Final = ("F32", "BF16", "F16")  # the dtypes that models are trained in


class Tensors(TensorSource, Protocol):
    """A source that gives the tensors themselves too."""

    def read(self, name: str) -> Tensor:
        """Return one tensor."""
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
            value = source.read(stored)
            casts[first] = {code: digest_of(value.to(DTYPES[code])) for code in CASTS if code != types[stored].dtype}
    return casts
