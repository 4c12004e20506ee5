"""The modules that PEFT trains on the same token rows as a model's input embedding."""

import contextlib
from typing import Any

from torch import nn


def find_embedding(model: nn.Module, getter: str = "get_input_embeddings") -> str | None:
    """Return the name of the module that `getter`, a method of the model, gives, or None if it gives none."""
    with contextlib.suppress(NotImplementedError, AttributeError):
        found = getattr(model, getter)()
        return next((name for name, module in model.named_modules() if module is found), None)
    return None


def find_token_ties(model: nn.Module) -> list[str]:
    """Return the modules that PEFT ties to the rows of the input embedding, sorted.

    They are those of the model's and its parts' tables of tied weights with the input embedding as their source, and
    only if the model's own config ties embeddings (PEFT 0.21, utils/other.py). Other names of the tensor are not.
    """
    config: Any = getattr(model, "config", None)
    embedding = find_embedding(model)
    if embedding is None or not getattr(config, "tie_word_embeddings", False):
        return []
    table: dict[str, str] = {}
    for name, module in model.named_modules():
        tied = getattr(module, "_tied_weights_keys", None)
        if isinstance(tied, dict):
            prefix = f"{name}." if name else ""
            table |= {prefix + target: prefix + source for target, source in tied.items()}
    own = set(model.get_submodule(embedding).parameters())
    names = {name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter in own}
    ties = {target.removesuffix(".weight") for target, source in table.items() if source in names}
    return sorted(ties - {embedding})
