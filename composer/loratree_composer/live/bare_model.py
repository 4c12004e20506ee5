"""The model itself, without what others have wrapped around it."""

import sys

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from loratree_composer.live.stack import is_stacked
from loratree_registry.errors import Conflict, Invalid, listed


def bare_model(model: nn.Module) -> nn.Module:
    """The module that a torch.compile'd one runs, any other itself.

    Raises Invalid where it, or a part of it, is wrapped in something else that gives its tensors other names or values,
    and Conflict where it carries a stacked composition.
    """
    optimized = _optimized()
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
            f"the model is not the base itself ({listed(wrapped, limit=3)}): give the inner model, which is .module of "
            "a parallel one, and compile a part of it with its own compile(), which keeps the names"
        )
    _check_plain(model)
    return model


def _optimized() -> tuple[type[nn.Module], ...]:
    """The class that torch.compile wraps a module in; none is loaded before the first."""
    module = sys.modules.get("torch._dynamo.eval_frame")
    return (module.OptimizedModule,) if module is not None else ()


def _check_plain(model: nn.Module) -> None:
    peft = sorted({type(layer).__name__ for layer in model.modules() if type(layer).__module__.startswith("peft.")})
    if peft:
        raise Invalid(
            f"the model carries PEFT's layers ({listed(peft, limit=3)}): give the base model itself, or what its "
            "unload() returns"
        )
    if is_stacked(model):
        raise Conflict(
            "the model, or the one that it was copied from, carries a composition: call restore() there first"
        )
