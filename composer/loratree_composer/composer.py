"""Composer: any path of the tree, composed on a live model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from weakref import finalize

from torch import nn

from loratree_composer.adapters.adapter import WeightedChain, programs_of
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
    """A live model that carries one composition at a time; removing the composition leaves no trace.

    `use` stacks (the base's weights stay untouched), `merge` writes the sum into the weights, `restore` gives the bare
    base back, bit for bit. A call replaces the previous composition, which stays if fetching the adapters fails. A call
    changes the model for the whole process, so a Composer is not thread-safe. While another Composer has a composition
    on the model, or on a part of the model, `use` and `merge` raise Conflict.

    A torch.compile'd model counts as the model inside it. torch.compile limits how often it compiles one function, so
    adding or removing a stack drops all code that torch.compile made in this process; the next call compiles again.
    `merge` writes in place and costs no compilation. An exported or captured graph is a copy that no call changes.

    The model is any torch.nn.Module with the tensors of a base; without `base`, the registry is searched for that base.
    `verify` hashes every tensor, which reads the whole model once; a model in another dtype than its base is compared
    with the base's checkpoint, cast. Without `verify`, only names and shapes are compared. `pristine` is where merging
    reads the untouched weights: a copy on the `host` or on the weights' own `device`, as large as all weights merged so
    far, or the base's checkpoint in `files`, which needs no memory but a read at each merge. `prefixes` caches the
    float32 sum of the ancestors beside the weights, 4 bytes for each weight that the leaf changes, so that merging
    another leaf under the same ancestors adds only the leaf; the default is True only for a model on a CPU. `home` is
    the folder of this machine's caches (default: LORATREE_HOME). Raises Invalid if the model is not the base, and
    Conflict if the model already carries a composition.
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
        """The base with the model's weights."""
        return self._base

    @property
    def current(self) -> Resolution | None:
        """The composition on the model; None for the bare base."""
        return self._current

    @property
    def unreached(self) -> list[str]:
        """The stacked layers with a forward that has not run yet: after a pass, their deltas were left out."""
        return self._stack.unreached if self._stack is not None else []

    def use(
        self, ref: str, *, merged: str | None = None, follow: str | None = None, weights: Weights | None = None
    ) -> Resolution:
        """Stack the chain of `ref`: y = Wx + Σ wᵢsᵢBᵢ(Aᵢx), as one pair of products for each layer.

        With `merged`, the path of a version in the chain, the chain down to that version is merged into the weights and
        rounded to their dtype; the rest is stacked on top: y = W'x + Σ wᵢsᵢBᵢ(Aᵢx). The next `use` that merges the same
        versions writes no weight.

        A layer's forward computes the products. If a model reads a layer's weight without its forward, as Mamba does
        with dt_proj, the layer's delta is left out, as with PEFT's active adapter; `merge` includes it. `unreached`
        names such layers after a pass. The factors take each layer's dtype and device: if the model is cast or moved,
        its layers raise Invalid until `use` is called again. An edit that is no delta of a layer's weight is stacked as
        a composed copy of its tensor, which needs that tensor's memory again (see Stack).

        Raises Invalid for a path that is not in the chain. A failure on the model restores the bare base.
        """
        resolution, chain = self._read(ref, follow, weights)
        depth = _depth_of(resolution, merged)
        try:
            self._unstack()
            if depth:
                self._merged.merge(self._prepare_programs(resolution, chain, slice(0, depth)))
            else:
                self._merged.restore()
            self._stack = Stack(self._model, self._prepare_programs(resolution, chain, slice(depth, None)))
        except BaseException:
            self.restore()
            raise
        return self._set_current(resolution)

    @contextmanager
    def active(
        self, ref: str, *, merged: str | None = None, follow: str | None = None, weights: Weights | None = None
    ) -> Iterator[Resolution]:
        """Stack the chain of `ref` for one `with` block, as `use` does; `restore` runs after the block.

        The bare base is back after the block, also if `merge` or another `use` was called in the block.
        """
        try:
            yield self.use(ref, merged=merged, follow=follow, weights=weights)
        finally:
            self.restore()

    def merge(self, ref: str, *, follow: str | None = None, weights: Weights | None = None) -> Resolution:
        """Merge the chain of `ref`: W' = W + Σ wᵢsᵢBᵢAᵢ, from the pristine weights. A failure restores the bare base.

        For each weight, one product sums the ancestors and a second adds the leaf, in float32, rounded once. Weights
        that are the same as after the last merge are not written. `weights` are level weights by path, by default 1.
        """
        resolution, chain = self._read(ref, follow, weights)
        try:
            self._unstack()
            self._merged.merge(self._prepare_programs(resolution, chain, slice(None)))
        except BaseException:
            self.restore()
            raise
        return self._set_current(resolution)

    def restore(self, *, release: bool = False) -> None:
        """Restore the bare base, bit for bit; `release` also frees the memory reserved for the next merge."""
        self._unstack()
        if release:
            self._merged.release()
            self._recent.clear()
            self._adapters.forget()
        else:
            self._merged.restore()
        self._clear_current()

    def _read(self, ref: str, follow: str | None, weights: Weights | None) -> tuple[Resolution, WeightedChain]:
        if base_of(parse_ref(ref).path) != self._base.name:
            raise Invalid(f"{ref} is not in the tree of {self._base.name}, the base of this model")
        check_unclaimed(self._model, self._mark)
        resolution = self._registry.resolve(ref, follow=follow, weights=weights)
        return resolution, self._adapters.load_chain(resolution)

    def _prepare_programs(self, resolution: Resolution, chain: WeightedChain, levels: slice) -> Programs:
        key = resolution.composition, levels.start, levels.stop
        return self._recent.get(key, lambda: programs_of(chain[levels], above=chain[: levels.start or 0]))

    def _set_current(self, resolution: Resolution) -> Resolution:
        self._current = resolution
        claim(self._model, self._mark)
        return resolution

    def _clear_current(self) -> None:
        self._current = None
        release(self._model, self._mark)

    def _unstack(self) -> None:
        if self._stack is not None:
            self._stack.remove()
            self._stack = None


def _depth_of(resolution: Resolution, merged: str | None) -> int:
    """Return how many versions of the chain lie at or above the path `merged`; 0 for None."""
    paths = [link.path for link in resolution.chain]
    if merged is None:
        return 0
    if merged not in paths:
        levels = f"its levels are {listed(paths)}" if paths else "it is the base alone, without a level"
        raise Invalid(f"{merged!r} is not in the chain of {resolution.ref}, so it cannot be merged down to: {levels}")
    return paths.index(merged) + 1
