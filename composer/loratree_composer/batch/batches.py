"""The batches of one Composer: what they share, and how each is put on the model."""

from collections.abc import Callable

from torch import nn

from loratree_composer.adapters.budget import Budget
from loratree_composer.batch.composed import Batch, Read, Reading
from loratree_composer.batch.mixed_batch import MixedBatch
from loratree_composer.batch.nodes import Nodes


class Batches:
    """Makes a live model's batches, which take the versions that earlier ones left from memory."""

    def __init__(self, model: nn.Module, budget: Budget) -> None:
        self._model, self._budget = model, budget
        self._nodes: Nodes | None = None

    @property
    def nbytes(self) -> int:
        """The size in bytes of the versions that are held."""
        return 0 if self._nodes is None else self._nodes.nbytes

    def make(self, read: Read, merged: str | None, *, static: bool) -> tuple[Batch, Callable[[Reading], MixedBatch]]:
        """Return a batch that is not on the model yet, and what puts it there."""
        mixed = MixedBatch(self._model, self._find_nodes(), lambda ref: batch.read_row(ref))
        batch = Batch(mixed, read, merged, static=static)

        def start(reading: Reading) -> MixedBatch:
            try:
                batch.start(reading)
            except BaseException:
                mixed.remove()
                raise
            return mixed

        return batch, start

    def forget(self) -> None:
        """Free every version."""
        if self._nodes is not None:
            self._nodes.forget()
            self._nodes = None

    def _find_nodes(self) -> Nodes:
        """Return the versions that are held, none if the model was cast or moved."""
        if self._nodes is None or not self._nodes.fits():
            self.forget()
            self._nodes = Nodes(self._model, self._budget)
        return self._nodes
