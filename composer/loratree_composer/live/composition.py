"""The one composition that a live model carries: what is merged into its weights, and what is stacked beside them."""

from collections.abc import Callable
from typing import Protocol
from weakref import ref

from torch import nn

from loratree_composer.live.claims import claim, free, release
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.recent_programs import Programs
from loratree_registry.core.records import Resolution

MakePrograms = Callable[[], Programs]


class Stacked(Protocol):
    """What runs beside the layers of a model."""

    @property
    def nbytes(self) -> int:
        """The size in bytes of what it holds."""
        ...

    @property
    def unreached(self) -> list[str]:
        """The layers with a forward that has not run yet."""
        ...

    def remove(self) -> None:
        """Take it off the model."""
        ...


MakeStack = Callable[[], Stacked]


class LiveComposition:
    """What a Composer, `owner`, has put on its model. It stays on the model if the Composer is gone."""

    def __init__(self, owner: object, model: nn.Module, merged: MergedWeights) -> None:
        self._owner, self._model, self._merged = ref(owner), model, merged
        self._stack: Stacked | None = None
        self.current: Resolution | None = None  # None for the bare base, and for a batch of paths

    @property
    def is_lost(self) -> bool:
        """True if the Composer no longer exists."""
        return self._owner() is None

    @property
    def unreached(self) -> list[str]:
        """The stacked layers with a forward that has not run yet."""
        return self._stack.unreached if self._stack is not None else []

    @property
    def pristine_bytes(self) -> int:
        """The size of the pristine copies, and of the copies of names that are untied now."""
        return self._merged.nbytes

    @property
    def stack(self) -> Stacked | None:
        """What is stacked now."""
        return self._stack

    def free_model(self) -> None:
        """Take lost compositions off the model. Raises Conflict if another Composer has one there."""
        free(self._model, self)

    def put_on(self, resolution: Resolution | None, *, merged: MakePrograms | None, stacked: MakeStack | None) -> None:
        """Replace what is on the model. After any failure the bare base is back.

        `stacked` is called after the weights are merged, because a stack may depend on their values.
        """
        try:
            self._unstack()
            if merged is not None:
                self._merged.merge(merged())
            else:
                self._merged.restore()
            if stacked is not None:
                self._stack = stacked()
        except BaseException:
            self.restore()
            raise
        self.current = resolution
        claim(self._model, self)

    def restore(self) -> None:
        """Give the bare base back, bit for bit."""
        self._unstack()
        self._merged.restore()
        release(self._model, self)

    def release(self) -> None:
        """Give the bare base back, and free the pristine copies and the cached sums."""
        self._unstack()
        self._merged.release()
        release(self._model, self)

    def _unstack(self) -> None:
        self.current = None  # after a failure from here on, the bare base is back
        if self._stack is not None:
            self._stack.remove()
            self._stack = None
