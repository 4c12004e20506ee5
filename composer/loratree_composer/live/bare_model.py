"""The plain model under a torch.compile wrapper; every other wrapper is refused."""

import sys

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from loratree_composer.live.stack import is_stacked
from loratree_registry.errors import Conflict, Invalid, listed


def bare_model(model: nn.Module) -> nn.Module:
    """Return the module inside a torch.compile wrapper, or `model` itself if it has no wrapper.

    Raises Invalid if the model, or a part of it, has another wrapper that changes the names or values of its tensors,
    and Conflict if the model carries a stacked composition.
    """
    optimized = _find_wrapper_classes()
    while isinstance(model, optimized):
        inner = model._orig_mod
        assert isinstance(inner, nn.Module)
        model = inner
    wrapped = [
        f"{name or 'the model'} is a {type(layer).__name__}"
        for name, layer in model.named_modules()
        if isinstance(layer, (DataParallel, DistributedDataParallel, *optimized))
    ]
    if wrapped:
        raise Invalid(
            f"the model is not the base itself ({listed(wrapped, limit=3)}): give the inner model (.module of a "
            "parallel model), and compile a part of it with the compile() of that part, which keeps the tensors' names"
        )
    _check_plain(model)
    return model


def _find_wrapper_classes() -> tuple[type[nn.Module], ...]:
    """Return the class of torch.compile's wrappers, or () if torch has not loaded it and so has wrapped no module."""
    module = sys.modules.get("torch._dynamo.eval_frame")
    return (module.OptimizedModule,) if module is not None else ()


def _check_plain(model: nn.Module) -> None:
    peft = sorted({type(layer).__name__ for layer in model.modules() if type(layer).__module__.startswith("peft.")})
    if peft:
        raise Invalid(
            f"the model carries PEFT's layers ({listed(peft, limit=3)}): give the base model itself, or the model "
            "that its unload() returns"
        )
    if is_stacked(model):
        raise Conflict(
            "the model, or the one that it was copied from, carries a composition: call its Composer's restore() first"
        )
