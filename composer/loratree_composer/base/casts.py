"""Digests of a base's embeddings and heads in other dtypes, to recognise the copies that PEFT saves of them."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from torch import Tensor, nn

from loratree_composer.base.stored_tensor import DTYPES, digest_of
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
    names = {firsts[name] for name in _find_embeddings(module) if name in firsts}
    casts = {}
    for first in sorted(names):
        stored = next(name for name in types if firsts[name] == first)
        if types[stored].dtype in CASTS:
            value = source.read(stored)
            casts[first] = {code: digest_of(value.to(DTYPES[code])) for code in CASTS if code != types[stored].dtype}
    return casts


def _find_embeddings(module: nn.Module) -> Iterator[str]:
    owners = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        with contextlib.suppress(NotImplementedError, AttributeError):
            owners.append(getattr(module, getter)())
    for name, layer in module.named_modules(remove_duplicate=False):
        if any(layer is owner for owner in owners):
            yield from (f"{name}.{leaf}" for leaf, _ in layer.named_parameters(recurse=False))
