"""Which models carry a composition, so that two Composers never add theirs up on one."""

from weakref import WeakKeyDictionary

from torch import nn

from loratree_registry.errors import Conflict

_holders: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()


def claim(model: nn.Module, holder: object) -> None:
    """Marks `model` and every module in it as carrying the composition of `holder`, an object of its own for each."""
    for module in model.modules():
        _holders[module] = holder


def release(model: nn.Module, holder: object) -> None:
    """Takes the marks of `holder` off."""
    for module in model.modules():
        if _holders.get(module) is holder:
            del _holders[module]


def check_unclaimed(model: nn.Module, holder: object) -> None:
    """Raises Conflict where another than `holder` has a composition on `model`, a part of it, or what it is part of."""
    if any(_holders.get(module, holder) is not holder for module in model.modules()):
        raise Conflict(
            "another Composer has a composition on this model, and the two would add up: call its restore() first, or "
            "load the model anew"
        )
