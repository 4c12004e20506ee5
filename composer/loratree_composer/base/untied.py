"""The ties that are left in a model whose config says `tie_word_embeddings: false`."""

import copy
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any, Final

import torch
from torch import nn

from loratree_composer.base.sharing import select_tied, ties

TIE: Final = "tie_word_embeddings"


def remaining_ties(module: nn.Module) -> dict[str, str]:
    """Map each name that is still tied without tie_word_embeddings to the first name of its tensor.

    Returns all ties of `module` if no config takes them apart without changing what its forward computes.
    """
    own = select_tied(ties(module))
    if not own or not hasattr(module, "tie_weights"):
        return own
    untied = _build(module)
    return own if untied is None or reads_tie(untied) else select_tied(ties(untied))


def take_apart(module: nn.Module) -> None:
    """Set tie_word_embeddings to false in the config of a model, and give each untied name a tensor of its own."""
    remaining = remaining_ties(module)
    _deny_ties(module.config)
    for name in select_tied(ties(module)).keys() - remaining.keys():
        holder, leaf = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        tensor = getattr(holder, leaf)
        value = tensor.detach().clone()
        own = nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        setattr(holder, leaf, own)
    loader: Any = module
    loader.all_tied_weights_keys = loader.get_expanded_tied_weights_keys(all_submodels=True)


def _deny_ties(config: Any) -> None:
    """Set tie_word_embeddings to false in a config of transformers and in every config inside it."""
    from transformers import PreTrainedConfig

    setattr(config, TIE, False)
    for inner in vars(config).values():
        if isinstance(inner, PreTrainedConfig):
            _deny_ties(inner)


def reads_tie(model: nn.Module) -> bool:
    """Return whether the forward of the model, or of a module in it, reads tie_word_embeddings."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    forwards = [inspect.unwrap(vars(cls)["forward"]) for cls in classes if "forward" in vars(cls)]
    return any(TIE in _find_words(forward.__code__) for forward in forwards if inspect.isfunction(forward))


def _build(module: nn.Module) -> nn.Module | None:
    """Build the model of the same config without ties on the meta device; return None if there is no such model."""
    make: Any = type(module)
    try:
        config = copy.deepcopy(module.config)
        _deny_ties(config)
        with torch.device("meta"):
            model = make(config)
        model.tie_weights()
    except Exception:
        return None
    assert isinstance(model, nn.Module)
    return model if ties(model).keys() == ties(module).keys() else None


def _find_words(code: CodeType) -> Iterator[object]:
    """Yield the names and constants in a function's code, and in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        yield from _find_words(constant) if isinstance(constant, CodeType) else (constant,)
