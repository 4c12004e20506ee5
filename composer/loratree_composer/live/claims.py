"""Marks on models that carry a composition, so that two Composers never add their compositions up on one model."""

from weakref import WeakKeyDictionary

from torch import nn

from loratree_registry.errors import Conflict

_holders: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()


def claim(model: nn.Module, holder: object) -> None:
    """Mark `model` and every module in it as carrying the composition of `holder`, an object unique to a Composer."""
    for module in model.modules():
        _holders[module] = holder


def release(model: nn.Module, holder: object) -> None:
    """Remove the marks of `holder` from `model` and from every module in it."""
    for module in model.modules():
        if _holders.get(module) is holder:
            del _holders[module]


def check_unclaimed(model: nn.Module, holder: object) -> None:
    """Raise Conflict if another holder has a composition on `model`, on a part of it, or on a model around it."""
    if any(_holders.get(module, holder) is not holder for module in model.modules()):
        raise Conflict(
            "another Composer has a composition on this model, and the two would add up: call that Composer's "
            "restore() first, or load the model again"
        )
