"""Marks on models that carry a composition, so that two Composers never add their compositions up on one model."""

from typing import Any, Final, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

from loratree_registry.errors import Conflict


class Holder(Protocol):
    """A composition on a model, and the Composer that put it there."""

    @property
    def is_lost(self) -> bool:
        """True if the Composer no longer exists."""
        ...

    def restore(self) -> None:
        """Take the composition off the model."""
        ...


# The holder refers to its model, so a strong reference here would keep both in memory for ever. The model itself has
# the strong one, because a composition stays when its Composer is gone: `Composer(model).use(ref)` is a whole program.
_holders: WeakKeyDictionary[nn.Module, ReferenceType[Holder]] = WeakKeyDictionary()
_OWNED: Final = "_loratree_composition"


class _Owned:
    """The strong reference from a model to what it carries. A copy of the model has none."""

    def __init__(self, holder: Holder | None = None) -> None:
        self.holder = holder

    def __deepcopy__(self, _: object) -> "_Owned":
        return _Owned()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Owned, ()


def claim(model: nn.Module, holder: Holder) -> None:
    """Mark `model` and every module in it as carrying the composition of `holder`."""
    mark = ref(holder)
    for module in model.modules():
        _holders[module] = mark
    vars(model)[_OWNED] = _Owned(holder)


def release(model: nn.Module, holder: Holder) -> None:
    """Remove the marks of `holder` from `model` and from every module in it."""
    for module in model.modules():
        if _holder_of(module) in (holder, None):
            _holders.pop(module, None)
    vars(model).pop(_OWNED, None)


def free(model: nn.Module, holder: Holder | None) -> None:
    """Take off the compositions of lost Composers on `model`, on a part of it, or on a model around it.

    Raises Conflict if a Composer other than `holder`'s still has one there.
    """
    for module in list(model.modules()):
        other = _holder_of(module)
        if other in (holder, None):
            continue
        if not other.is_lost:
            raise Conflict(
                "another Composer has a composition on this model, and the two would add up: call that Composer's "
                "restore() first, or Composer.reset(model) if you cannot reach it"
            )
        other.restore()


def restore_all(model: nn.Module) -> None:
    """Take every composition off `model` and its parts, whoever put it on."""
    for module in list(model.modules()):
        if (holder := _holder_of(module)) is not None:
            holder.restore()


def _holder_of(module: nn.Module) -> Holder | None:
    mark = _holders.get(module)
    return None if mark is None else mark()
