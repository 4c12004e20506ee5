"""Composer: a live model, and any path of the tree on it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from weakref import finalize

from torch import nn

from loratree_composer.adapters.adapter import WeightedChain, composed
from loratree_composer.adapters.reader import AdapterReader
from loratree_composer.base.files import open_base
from loratree_composer.base.identify import identify
from loratree_composer.live.bare_model import bare_model
from loratree_composer.live.claims import check_unclaimed, claim, release
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.pristine import PristinePlace
from loratree_composer.live.recent_programs import Programs, RecentPrograms
from loratree_composer.live.stack import Stack
from loratree_registry.connect import connect
from loratree_registry.core.paths import base_of, parse_ref
from loratree_registry.core.records import Base, Resolution
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Invalid, listed
from loratree_registry.settings import Settings

Weights = Mapping[str, float]  # level weights by path


class Composer:
    """Puts compositions on a live model, one at a time, and takes them off without a trace.

    `use` stacks (the base's weights stay untouched), `merge` writes the sum into the weights, `restore` gives the bare
    base back, bit for bit. A call replaces what was there before; if it fails while adapters are fetched, that stays.
    It changes the model for the whole process, so it is not for several threads. A model carries the composition of one
    Composer at a time: while another has one on it, or on a part of it, `use` and `merge` raise Conflict.

    A torch.compile'd model is taken for the one that it runs. A function is compiled anew for other forwards only so
    often, so `use` and what takes its stack off drop all code that torch.compile made in this process: it is compiled
    again when next called. `merge` writes in place and costs no compilation. A graph that was exported or captured by
    hand is a copy of the model as it was, and no call here reaches it.

    The model is any torch.nn.Module whose tensors are those of a base in the registry: `base` names it, else it is
    found. With `verify` every tensor is hashed, which reads the whole model once; a model that is held in another
    dtype than its base is compared with the base's checkpoint, cast. Without, names and shapes alone are compared.
    `pristine` is where merging gets the untouched weights from: a copy on the `host` or on their own `device`, as large
    as what was ever merged into, or the base's checkpoint in `files`, which costs no memory and a read at each merge.
    `prefixes` keeps the float32 sum of the ancestors where the weights are, 4 bytes a weight that the leaf touches, so
    that another leaf under them costs the leaf alone; by default only in the memory of a CPU. `home` is the folder of
    this machine's caches (default: LORATREE_HOME). Raises Invalid where the model is another one, and Conflict where it
    carries a composition already.
    """

    def __init__(
        self,
        model: nn.Module,
        registry: Registry | None = None,
        *,
        base: str | None = None,
        verify: bool = True,
        pristine: PristinePlace = "host",
        prefixes: bool | None = None,
        home: Path | None = None,
    ) -> None:
        self._mark = object()
        check_unclaimed(model, self._mark)
        self._model = model = bare_model(model)
        home = home or Settings.from_environment().home
        if registry is None:
            registry = connect()
            finalize(self, registry.close)
        self._registry = registry
        self._base, manifest = identify(model, registry, name=base, verify=verify, home=home)
        self._adapters = AdapterReader(registry, manifest, home)
        source = open_base(self._base, manifest, home) if pristine == "files" else None
        if prefixes is None:
            prefixes = all(parameter.device.type == "cpu" for parameter in model.parameters())
        self._merged = MergedWeights(model, pristine=pristine, source=source, prefixes=prefixes)
        self._recent = RecentPrograms()
        self._stack: Stack | None = None
        self._current: Resolution | None = None

    @property
    def base(self) -> Base:
        """The base that the model is."""
        return self._base

    @property
    def current(self) -> Resolution | None:
        """What is on the model now; None for the bare base."""
        return self._current

    @property
    def unreached(self) -> list[str]:
        """The stacked layers whose forward has not run yet: after a pass, those whose delta was left out."""
        return self._stack.unreached if self._stack is not None else []

    def use(
        self, ref: str, *, merged: str | None = None, follow: str | None = None, weights: Weights | None = None
    ) -> Resolution:
        """Stacks the chain of `ref`: y = Wx + Σ wᵢsᵢBᵢ(Aᵢx), as one pair of products a layer.

        With `merged`, the path of a version in the chain, the chain down to it is merged into the weights as `merge`
        does, and what lies below is stacked on those: y = W'x + Σ wᵢsᵢBᵢ(Aᵢx). The next `use` that merges the same
        writes no weight. The weights are then rounded once between the two, in their dtype.

        The products are a layer's forward's: a model that reads a layer's weight past its forward, as Mamba does with
        dt_proj, goes without that layer's delta, which PEFT's active adapter leaves out in the same way and `merge`
        does not. `unreached` names such layers after a pass. The factors take each layer's dtype and device: after the
        model was cast or moved, its layers raise Invalid until `use` is called again. What is no delta of a layer's
        weight is stacked as a composed copy of its tensor, which needs that tensor's memory again (see Stack).

        Raises Invalid for a path that is not in the chain. After a failure on the model the bare base is back.
        """
        resolution, chain = self._read(ref, follow, weights)
        depth = _depth(resolution, merged)
        try:
            self._unstack()
            if depth:
                self._merged.merge(self._programs(resolution, chain, slice(0, depth)))
            else:
                self._merged.restore()
            self._stack = Stack(self._model, self._programs(resolution, chain, slice(depth, None)))
        except BaseException:
            self.restore()
            raise
        return self._carries(resolution)

    @contextmanager
    def active(
        self, ref: str, *, merged: str | None = None, follow: str | None = None, weights: Weights | None = None
    ) -> Iterator[Resolution]:
        """Stack the chain of `ref` for the length of a `with` block, as `use` does; `restore` runs at its end.

        The bare base is back after the block, also if `merge` or another `use` was called inside it.
        """
        try:
            yield self.use(ref, merged=merged, follow=follow, weights=weights)
        finally:
            self.restore()

    def merge(self, ref: str, *, follow: str | None = None, weights: Weights | None = None) -> Resolution:
        """Merges the chain of `ref`: W' = W + Σ wᵢsᵢBᵢAᵢ, from the pristine weights. After a failure the base is back.

        The ancestors are summed in one product a weight and the leaf in a second, in float32, and rounded once; what
        does not differ from the last merge is left as it is. `weights` are level weights by path, 1 where not said.
        """
        resolution, chain = self._read(ref, follow, weights)
        try:
            self._unstack()
            self._merged.merge(self._programs(resolution, chain, slice(None)))
        except BaseException:
            self.restore()
            raise
        return self._carries(resolution)

    def restore(self, *, release: bool = False) -> None:
        """Gives the bare base back, bit for bit; with `release`, also the memory that is kept for the next merge."""
        self._unstack()
        if release:
            self._merged.release()
            self._recent.clear()
            self._adapters.forget()
        else:
            self._merged.restore()
        self._carries_nothing()

    def _read(self, ref: str, follow: str | None, weights: Weights | None) -> tuple[Resolution, WeightedChain]:
        if base_of(parse_ref(ref).path) != self._base.name:
            raise Invalid(f"{ref} is not in the tree of {self._base.name}, the base that this model is")
        check_unclaimed(self._model, self._mark)
        resolution = self._registry.resolve(ref, follow=follow, weights=weights)
        return resolution, self._adapters.chain(resolution)

    def _programs(self, resolution: Resolution, chain: WeightedChain, levels: slice) -> Programs:
        key = resolution.composition, levels.start, levels.stop
        return self._recent.get(key, lambda: composed(chain[levels], above=chain[: levels.start or 0]))

    def _carries(self, resolution: Resolution) -> Resolution:
        self._current = resolution
        claim(self._model, self._mark)
        return resolution

    def _carries_nothing(self) -> None:
        self._current = None
        release(self._model, self._mark)

    def _unstack(self) -> None:
        if self._stack is not None:
            self._stack.remove()
            self._stack = None


def _depth(resolution: Resolution, merged: str | None) -> int:
    """How many versions of the chain lie above or at the path `merged`; none for None."""
    paths = [link.path for link in resolution.chain]
    if merged is None:
        return 0
    if merged not in paths:
        levels = f"its levels are {listed(paths)}" if paths else "it is the base alone, without a level"
        raise Invalid(f"{merged!r} is not in the chain of {resolution.ref}, so it cannot be merged down to: {levels}")
    return paths.index(merged) + 1
