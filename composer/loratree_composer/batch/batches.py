"""The batches of one Composer: what they share, and how each is put on the model."""

import threading
from collections.abc import Callable

from torch import nn

from loratree_composer.adapters.adapter import WeightedChain
from loratree_composer.adapters.budget import Budget
from loratree_composer.adapters.tiers import Tier
from loratree_composer.batch.composed import Batch, Read, Reading
from loratree_composer.batch.mixed_batch import MixedBatch
from loratree_composer.batch.nodes import Nodes


class Batches:
    """Makes a live model's batches, which take the versions that earlier ones left from memory."""

    def __init__(self, model: nn.Module, budget: Budget, limit: int | None = None) -> None:
        self._model, self._budget, self._limit = model, budget, limit
        self._lock = threading.Lock()
        self._nodes: Nodes | None = None

    @property
    def nbytes(self) -> int:
        """The size in bytes of the versions that are held."""
        return 0 if self._nodes is None else self._nodes.nbytes

    def read(self) -> Tier:
        """Return the state of the versions that are held."""
        return self._find_nodes().read()

    def prefetch(self, chain: WeightedChain) -> None:
        """Hold the versions of a chain for batches to come, as long as others leave them room."""
        nodes = self._find_nodes()
        nodes.hold([chain])
        nodes.release({adapter.digest for adapter, weight in chain if weight})
        nodes.trim()

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

    def read_missing(self, reading: Reading) -> None:
        """Load what a batch needs and does not find here into memory."""
        self._find_nodes().read_missing([chain[reading.depth :] for _, chain in reading.read])

    def forget(self) -> None:
        """Free every version."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        if self._nodes is not None:
            self._nodes.forget()
            self._nodes = None

    def _find_nodes(self) -> Nodes:
        """Return the versions that are held, none if the model was cast or moved."""
        with self._lock:
            if self._nodes is None or not self._nodes.fits():
                self._forget()
                self._nodes = Nodes(self._model, self._budget, self._limit)
            return self._nodes
