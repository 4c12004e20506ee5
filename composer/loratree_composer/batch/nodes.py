"""The versions that a live model's batches hold, each checked against the model when it is loaded."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from loratree_composer.adapters.adapter import Adapter, Factors, WeightedChain, tensors_of
from loratree_composer.adapters.budget import Budget
from loratree_composer.adapters.tiers import Counts, Tier, timed
from loratree_composer.arithmetic.edits import Add, Edit, ReplaceRows, Rescale
from loratree_composer.arithmetic.merge import check_held, check_values
from loratree_composer.arithmetic.precision import full_float32
from loratree_composer.base.layer_kind import kind_of
from loratree_composer.base.past_forward import is_read_past_forward
from loratree_composer.base.quantised import read_live
from loratree_composer.base.sharing import tensors
from loratree_composer.batch.mixed_layers import KINDS, MixedLayer
from loratree_composer.batch.node import Node, is_mixable, rank_rows, shifts_of
from loratree_composer.batch.plan import Path
from loratree_composer.batch.slab import Slab
from loratree_composer.live.fit import check_fit, fit_problems, owner, shared_layers
from loratree_composer.live.stack import (
    INNER,
    dtype_beside_quantised,
    has_own_forward,
    has_plain_forward,
    quantised_problems,
)
from loratree_composer.live.stacked_layers import device_of
from loratree_registry.errors import Invalid

Edits = Mapping[str, Sequence[Edit]]  # of one version at level weight 1, by the names of the tensors

_WEIGHT: Final = "weight"
_NAME: Final = "batches"  # in the budget
_SHARE: Final = 0.25


class Nodes:
    """Versions by digest, for the layers of one model, in the dtype that each layer has now; for any number of threads.

    Versions that a batch holds stay. Others are kept in at most a quarter of a budget, or, together with those of
    batches, in `limit` bytes; the least recently used leave first.
    """

    def __init__(self, model: nn.Module, budget: Budget | None = None, limit: int | None = None) -> None:
        self._model, self._limit = model, limit
        self._budget = Budget(limit) if limit is not None else budget or Budget()
        self._made_for, self._held = _describe(model), 0
        self.quantised = read_live(model).sizes()
        device = next((device for _, device in self._made_for.values()), torch.device("cpu"))
        self._slab = Slab({name: dtype for name, (dtype, _) in self._made_for.items()}, device)
        self._nodes: OrderedDict[str, Node] = OrderedDict()
        self._pins = Counter[str]()  # holders of each version
        self._lock, self._counts = threading.RLock(), Counts()

    @property
    def nbytes(self) -> int:
        """The size in bytes of what is held of every version."""
        return self._held

    @property
    def slab_nbytes(self) -> int:
        """The size in bytes of the slab, with its free slots."""
        return self._slab.nbytes

    def read(self) -> Tier:
        """Return the state of the versions."""
        with self._lock:
            limit = int(_SHARE * self._budget.limit) if self._limit is None else self._limit
            return self._counts.read(limit=limit, held=self._held, versions=len(self._nodes))

    def fits(self) -> bool:
        """Return whether the model's tensors have the dtypes and devices that they had at first."""
        return _describe(self._model) == self._made_for

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype of a version's rows of the weight `name`."""
        return self._made_for[name][0]

    def hold(self, chains: Sequence[WeightedChain]) -> list[Path]:
        """Hold every version of the chains until `release`, and return their paths; a level weight of 0 drops a level.

        Raises Invalid if a version does not fit the model, or if the versions take more than the limit; then none of
        them is held.
        """
        wanted = {adapter.digest: adapter for chain in chains for adapter, weight in chain if weight}
        with self._lock:  # those that are there must stay while the others are read
            there = [digest for digest in wanted if digest in self._nodes]
            self._pins.update(there)
        try:
            read = {digest: adapter.loaded() for digest, adapter in wanted.items() if digest not in there}
            with self._lock:
                self._add(read, there)
        except BaseException:
            self.release(there)
            raise
        self._counts.hit(len(there))
        return [[(self._nodes[adapter.digest], weight) for adapter, weight in chain if weight] for chain in chains]

    def release(self, digests: Iterable[str]) -> None:
        """Let versions leave that `hold` has held, once for each call of it."""
        with self._lock:
            for digest in digests:
                self._pins[digest] -= 1
                if not self._pins[digest]:
                    del self._pins[digest]

    def read_missing(self, chains: Sequence[WeightedChain]) -> None:
        """Load the adapters of versions that are not there into memory, for a `hold` that follows soon."""
        for adapter in {adapter.digest: adapter for chain in chains for adapter, weight in chain if weight}.values():
            if adapter.digest not in self._nodes:
                adapter.loaded()

    def trim(self) -> None:
        """Free versions that nobody holds, the least recently used first, until the rest fits."""
        with self._lock:
            self._make_room(0)

    def forget(self) -> None:
        """Free every version."""
        with self._lock:
            for digest in list(self._nodes):
                self._drop(digest)

    def _add(self, read: Mapping[str, Adapter], there: Sequence[str]) -> None:
        """Put versions that were read into the slab, unless another thread has meanwhile, and hold them."""
        for digest in there:
            self._nodes.move_to_end(digest)
        new = {digest: adapter for digest, adapter in read.items() if digest not in self._nodes}
        self._pins.update(read.keys() - new.keys())
        made: dict[str, Node] = {}
        try:
            self._check_limit(new, [*there, *(read.keys() - new.keys())])
            if self._limit is not None:  # without a limit of its own, what it has is trimmed when the batch ends
                self._make_room(self._size_of(new.values()))
            coming = Counter(_form_of(adapter) for adapter in new.values())
            for digest, adapter in new.items():
                form = _form_of(adapter)
                with timed() as watch:
                    made[digest] = self._make(adapter, coming[form])
                coming[form] -= 1
                self._counts.load(made[digest].nbytes, watch.seconds)
        except BaseException:
            for node in made.values():
                self._free(node)
            self.release(read.keys() - new.keys())
            raise
        for digest, node in made.items():
            self._nodes[digest] = node
            self._count(node.nbytes)
        self._pins.update(list(made))

    def _check_limit(self, new: Mapping[str, Adapter], others: Sequence[str]) -> None:
        """Raise Invalid if versions take more than a given limit."""
        if self._limit is None:
            return
        together = self._size_of(new.values()) + sum(self._nodes[digest].nbytes for digest in others)
        if together > self._limit:
            raise Invalid(
                f"the paths take {together:,} bytes of versions, and the device's limit is {self._limit:,}: raise "
                "Tiers(device=…), or put fewer paths into a batch"
            )

    def _size_of(self, adapters: Iterable[Adapter]) -> int:
        """Return about the bytes of versions in the layers' dtypes."""
        sizes = {name: dtype.itemsize for name, (dtype, _) in self._made_for.items()}
        return sum(
            sizes.get(name, 4) * sum(tensor.numel() for part in parts for tensor in tensors_of(part))
            for adapter in adapters
            for name, parts in adapter.parts.items()
        )

    def _make_room(self, size: int) -> None:
        """Free versions that nobody holds until they and `size` more bytes fit, the least recently used first."""
        for digest in [digest for digest in self._nodes if digest not in self._pins]:
            limit = self._limit if self._limit is not None else _SHARE * self._budget.limit
            if self._held + size <= min(limit, self._budget.left(_NAME)):
                return
            self._drop(digest)
            self._counts.evict()

    def _drop(self, digest: str) -> None:
        node = self._nodes.pop(digest)
        self._count(-node.nbytes)
        self._free(node)

    def _count(self, size: int) -> None:
        self._held += size
        self._budget.add(_NAME, size)

    def _free(self, node: Node) -> None:
        if node.place is not None:
            self._slab.drop(node.place)

    def _make(self, adapter: Adapter, coming: int) -> Node:
        live = tensors(self._model)
        with full_float32():
            step = adapter.step(1)
            edits = {name: step.edits[name] for name in adapter.parts}
            self._check(edits, live)
            mixed = {name: of for name, of in edits.items() if self._is_mixed(name, of)}
            shifts = {
                name: value.to(live[name].device, live[name].dtype)
                for name, value in shifts_of(edits)
                if self._has_mixed_layer(name)
            }
            rows = {name: found for name, of in mixed.items() if (found := rank_rows(of)) is not None}
            return Node(
                adapter.digest,
                self._slab.put(rows, coming=coming) if rows else None,
                magnitudes={name: last.magnitude for name, of in mixed.items() if isinstance(last := of[-1], Rescale)},
                rows={
                    name: ReplaceRows(
                        first.rows.to(live[name].device), first.value.to(live[name].device, live[name].dtype)
                    )
                    for name, of in mixed.items()
                    if isinstance(first := of[0], ReplaceRows)
                },
                shifts=shifts,
                whole=frozenset(edits.keys() - mixed.keys() - shifts.keys()),
                bound=max(
                    (edit.largest() for of in edits.values() for edit in of if isinstance(edit, Add)), default=0.0
                ),
            )

    def _check(self, edits: Edits, live: Mapping[str, Tensor]) -> None:
        problems = [f"{name} is not in the model" for name in edits if name not in live and name not in self.quantised]
        problems += shared_layers(self._model, list(edits))
        plain = [name for name in edits if name not in self.quantised]
        for name in edits.keys() & self.quantised.keys():
            layer, dtype = owner(self._model, name), self.dtype_of(name)
            has_forward = _is_mixed_now(layer) or has_own_forward(layer)
            problems += quantised_problems(
                layer, name, self.quantised[name], edits[name], dtype, has_forward=has_forward
            )
        for name in (name for name in plain if name in live):
            check_values(live[name], edits[name], name=name)
            problems += fit_problems(self._model, name, live[name], edits[name])
        check_fit(problems)
        for name in plain:
            for edit in edits[name]:
                if isinstance(edit, ReplaceRows):
                    check_held(edit.value, live[name].dtype, name=name)
                elif isinstance(edit, Add | Rescale):
                    check_held(edit.delta.a, live[name].dtype, name=name)
                    check_held(edit.delta.b, live[name].dtype, name=name)

    def _is_mixed(self, name: str, edits: Sequence[Edit]) -> bool:
        if name in self.quantised:
            return True
        return self._has_mixed_layer(name, _WEIGHT) and is_mixable(edits, kind_of(owner(self._model, name)))

    def _has_mixed_layer(self, name: str, leaf: str = "bias") -> bool:
        """Return whether `name` is the weight or the bias of a layer that can differ between the rows of a batch."""
        layer_name, _, own = name.rpartition(".")
        layer = owner(self._model, name)
        return (
            own == leaf
            and kind_of(layer) in KINDS
            and (_is_mixed_now(layer) or has_plain_forward(layer, f"{layer_name}.{_WEIGHT}"))
            and not is_read_past_forward(self._model, layer_name)
        )


def _form_of(adapter: Adapter) -> Hashable:
    """Return what adapters have in common whose rows lie in one block, if all of their deltas can be mixed."""
    return tuple(
        (name, tuple((part.a.shape, part.b.shape) for part in parts if isinstance(part, Factors)))
        for name, parts in adapter.parts.items()
    )


def _is_mixed_now(layer: nn.Module) -> bool:
    """Return whether the layer is in a batch already, for which its own forward was checked."""
    return any(isinstance(vars(layer).get(name), MixedLayer) for name in ("forward", INNER))


def _describe(model: nn.Module) -> dict[str, tuple[torch.dtype, torch.device]]:
    """Return the dtype and device of each tensor, and of what runs beside each quantised weight, by its name."""
    read = read_live(model)
    found = {name: (tensor.dtype, tensor.device) for name, tensor in read.plain.items() if tensor.is_floating_point()}
    beside = dtype_beside_quantised(read.plain)
    return found | {f"{layer}.weight": (beside, device_of(model.get_submodule(layer))) for layer in read.quantised}
