"""Composer: any path of the tree, composed on a live model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self
from weakref import finalize

from torch import nn

from loratree_composer.adapters.adapter import WeightedChain, programs_of
from loratree_composer.adapters.budget import DEFAULT, Budget, Memory
from loratree_composer.adapters.reader import AdapterReader
from loratree_composer.adapters.tiers import Residency, Tiers
from loratree_composer.base.files import load_base, open_base
from loratree_composer.base.identify import identify
from loratree_composer.base.quantised import quantised_layers
from loratree_composer.batch.batches import Batches
from loratree_composer.batch.composed import Batch, Ref, RowWeights, Weights
from loratree_composer.batch.mixed_batch import MixedBatch
from loratree_composer.batch.requests import raise_what_ended
from loratree_composer.live.bare_model import bare_model
from loratree_composer.live.claims import free, restore_all
from loratree_composer.live.composition import LiveComposition
from loratree_composer.live.merged_weights import MergedWeights
from loratree_composer.live.pristine import PristinePlace
from loratree_composer.live.recent_programs import Programs, RecentPrograms, RecentStacks
from loratree_composer.live.stack import Stack, strip
from loratree_composer.live.turns import Turns
from loratree_composer.residency.library import Library
from loratree_registry.connect import connect
from loratree_registry.core.paths import base_of, parse_ref
from loratree_registry.core.records import Base, Resolution
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Invalid, listed
from loratree_registry.settings import Settings


class Composer:
    """A live model that carries one composition at a time; removing the composition leaves no trace.

    `use` stacks (the base's weights stay untouched), `merge` writes the sum into the weights, `restore` gives the bare
    base back, bit for bit. A call replaces the previous composition, which stays if fetching the adapters fails. A call
    changes the model for the whole process. So calls of several threads wait for one another, and a block (`active`,
    `batch`, `requests`) has the model to itself until it ends; adapters are loaded meanwhile. While another Composer
    has a composition on the model, or on a part of the model, `use` and `merge` raise Conflict.

    A torch.compile'd model counts as the model inside it. torch.compile limits how often it compiles one function, so
    adding or removing a stack drops all code that torch.compile made in this process; the next call compiles again.
    `merge` writes in place and costs no compilation. An exported or captured graph is a copy that no call changes.

    The model is any torch.nn.Module with the tensors of a base; without `base`, the registry is searched for that base.
    `verify` hashes every tensor, which reads the whole model once; a model in another dtype than its base is compared
    with the base's checkpoint, cast. Without `verify`, only names and shapes are compared. `pristine` is where merging
    reads the untouched weights: a copy on the `host` or on the weights' own `device`, as large as all weights merged so
    far, or the base's checkpoint in `files`, which needs no memory but a read at each merge. `prefixes` caches the
    float32 sum of the ancestors beside the weights, 4 bytes for each weight that the leaf changes, so that merging
    another leaf under the same ancestors adds only the leaf; the default is True only for a model on a CPU.

    `budget` is the number of bytes that may be kept only to be faster, 4 GiB by default: adapters that were used (at
    most half), stacks (a quarter), programs ready to merge (a quarter), versions of earlier batches (a quarter), and
    prefix sums. What does not fit is not kept; 0 keeps nothing.
    `memory` says what is held now. `tiers` limits adapters in RAM, versions of batches and fetched files on their own;
    `residency` counts what happens in each tier, and `prefetch` loads ahead. `home` is the folder of this machine's
    caches (default: LORATREE_HOME).

    A composition stays on the model if its Composer is gone; the next Composer on the model takes it off. Raises
    Invalid if the model is not the base, or is sharded or offloaded, and Conflict if it carries the composition of a
    Composer that still exists. On a quantised model (bitsandbytes, torchao, …) a chain is stacked beside the quantised
    linear layers, as in QLoRA; a warning says that their weights were not compared with the base's.
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
        budget: int = DEFAULT,
        tiers: Tiers | None = None,
        home: Path | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise Invalid(f"a Composer takes a torch.nn.Module, got a {type(model).__name__}: load the model first")
        free(model, None)
        self._budget = Budget(budget)
        self._model = model = bare_model(model)
        home = home or Settings.from_environment().home
        if registry is None:
            registry = connect(begin=False)
            finalize(self, registry.close)
        self._base, manifest = identify(model, registry, name=base, verify=verify, home=home)
        self._quantised = list(quantised_layers(model))
        tiers = tiers or Tiers()
        self._adapters = AdapterReader(registry, manifest, home, budget=self._budget, tiers=tiers)
        self._library = Library(registry, self._base, self._adapters)
        source = open_base(self._base, manifest, home) if pristine == "files" else None
        if prefixes is None:
            prefixes = all(parameter.device.type == "cpu" for parameter in model.parameters())
        merged = MergedWeights(model, pristine=pristine, source=source, prefixes=prefixes, budget=self._budget)
        self._live = LiveComposition(self, model, merged)
        self._recent = RecentPrograms(self._budget)
        self._stacks = RecentStacks(self._budget)
        self._turns = Turns()
        self._batches = Batches(model, self._budget, tiers.device)

    @classmethod
    def from_pretrained(
        cls,
        ref: str,
        registry: Registry | None = None,
        *,
        merged: str | None = None,
        follow: str | None = None,
        weights: Weights | None = None,
        verify: bool = True,
        pristine: PristinePlace = "host",
        prefixes: bool | None = None,
        budget: int = DEFAULT,
        tiers: Tiers | None = None,
        home: Path | None = None,
        **loading: Any,
    ) -> Self:
        """Load the base of `ref` with transformers, and stack the chain of `ref` on it; `model` is the result.

        The base is read from the folder that `loratree base add` recorded on this machine. `loading` are arguments of
        transformers' from_pretrained, for example `dtype` or `device_map`; the default dtype is the checkpoint's. The
        others are those of `Composer` and `use`. Raises NotFound if the folder is not known, and what these two raise.
        """
        home = home or Settings.from_environment().home
        is_own = registry is None
        registry = connect(begin=False) if registry is None else registry
        try:
            base = registry.base(base_of(parse_ref(ref).path))
            model = load_base(base, home, **loading)
            # The base's files were compared when the base was added; the values are compared again.
            composer = cls(
                model,
                registry,
                base=base.name,
                verify=verify,
                pristine=pristine,
                prefixes=prefixes,
                budget=budget,
                tiers=tiers,
                home=home,
            )
            composer.use(ref, merged=merged, follow=follow, weights=weights)
        except BaseException:
            if is_own:
                registry.close()
            raise
        if is_own:
            finalize(composer, registry.close)
        return composer

    @staticmethod
    def reset(model: nn.Module) -> None:
        """Take every composition off `model`, whichever Composer put it on: the bare base is back, bit for bit.

        Of a copy of a model that carried a composition, only what ran beside the layers is taken off. Tensors that were
        copied with a composition's values stay so; the next Composer compares them with the base's.
        """
        restore_all(model)
        strip(model)

    @property
    def model(self) -> nn.Module:
        """The live model; for a compiled model, the one inside the wrapper."""
        return self._model

    @property
    def base(self) -> Base:
        """The base with the model's weights."""
        return self._base

    @property
    def current(self) -> Resolution | None:
        """The composition on the model; None for the bare base, and in a batch, which has a resolution for each row."""
        return self._live.current

    @property
    def resident(self) -> dict[str, int]:
        """The size in bytes of each adapter that is kept in memory, by PATH@NUMBER; the least recently used first."""
        return self._adapters.resident()

    def memory(self) -> Memory:
        """Return what this Composer holds beside the model, in bytes."""
        held, stack = self._budget.held, self._live.stack
        return Memory(
            budget=self._budget.limit,
            adapters=self._adapters.nbytes,
            programs=held("programs"),
            stacks=held("stacks"),
            prefix_sums=held("prefix sums"),
            pristine=self._live.pristine_bytes,
            stacked=0 if stack is None or self._stacks.holds(stack) else stack.nbytes,
            batches=self._batches.nbytes,
        )

    def residency(self) -> Residency:
        """Return what lies on the disk, in RAM and on the device now, with hits, misses, evictions and load times."""
        return Residency(disk=self._adapters.read_disk(), ram=self._adapters.read_ram(), device=self._batches.read())

    def prefetch(
        self, refs: Sequence[Ref] = (), *, below: str | None = None, follow: str | None = None, device: bool = True
    ) -> Future[int]:
        """Load the chains of `refs`, or of every version in the subtree `below`, on threads of its own.

        They are loaded to where batches take them from, or, without `device`, to RAM alone. What finds no room beside
        what is used leaves again, the least recently used first. Returns a future of the number of chains; its error is
        the first that occurred. Use the model meanwhile as you like.
        """
        return self._library.prefetch(refs, below, follow, self._batches if device else None)

    @property
    def unreached(self) -> list[str]:
        """The stacked layers with a forward that has not run yet: after a pass, their deltas were left out."""
        return self._live.unreached

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
        if merged is not None:
            self._check_mergeable()
        resolution, chain = self._read(ref, follow, weights)
        depth = _depth_of(resolution, merged)
        make = partial(self._prepare_programs, resolution, chain)
        with self._turns.put_on("use", ref, merged=merged, follow=follow, weights=weights):
            self._live.put_on(
                resolution,
                merged=partial(make, slice(0, depth)) if depth else None,
                stacked=partial(self._make_stack, resolution, chain, depth),
            )
        return resolution

    @contextmanager
    def active(
        self, ref: str, *, merged: str | None = None, follow: str | None = None, weights: Weights | None = None
    ) -> Iterator[Resolution]:
        """Stack the chain of `ref` for one `with` block, as `use` does; what was on the model before is back after it.

        So blocks can be nested. After the outermost block the bare base is back, also if `merge` or another `use` was
        called in it.
        """
        with self._turns.block(self):
            yield self.use(ref, merged=merged, follow=follow, weights=weights)

    @contextmanager
    def batch(
        self,
        refs: Sequence[Ref],
        *,
        lengths: Sequence[int] | None = None,
        merged: str | None = None,
        follow: str | None = None,
        weights: RowWeights = None,
        static: bool = False,
    ) -> Iterator[Batch]:
        """Let each row of the model's passes take a path of its own, for one `with` block.

        y = Wx + Σ wᵢsᵢBᵢ(Aᵢx), with the versions of each row's own chain. A version that several rows share is held and
        computed once. Rows may have different level weights, DoRA, biases and token rows; a tensor that an adapter
        replaces whole must be the same for all rows. `generate` keeps a row's path for its beams and its returned
        sequences. With `lengths`, each segment of an input that packs sequences takes a path.

        With `static`, a batch that has the same number of rows or tokens as the one before, and about as many ranks,
        changes only the values of tensors that stay. So code that torch.compile or a CUDA graph has captured goes on
        with other paths. It takes low-rank deltas alone, copies what the batch takes, and computes every version for
        every row: on a CPU that is slower than the other form.

        `merged` is as in `use`: all chains are the same down to it. The batch's `assign` replaces the paths between two
        passes, from any thread. Raises Invalid, with the whole batch refused, and what `use` raises. After the block,
        what was on the model before is back.
        """
        with self._in_batch(
            refs, lengths=lengths, merged=merged, follow=follow, weights=weights, static=static
        ) as batch:
            yield batch

    @contextmanager
    def requests(
        self,
        generation_config: Any = None,
        continuous_batching_config: Any = None,
        *,
        merged: str | None = None,
        follow: str | None = None,
        weights: Weights | None = None,
    ) -> Iterator[Any]:
        """Run transformers' continuous batching for one `with` block, and let each request take a path of its own.

        Yields the manager, whose `add_request` takes a `path` beside the tokens: a ref, also one that was published a
        moment ago. A request keeps its versions until it is finished. Blocks of the KV cache are not shared between
        requests, and passes are neither compiled nor captured. The block ends when every request is finished; then what
        was on the model before is back. Raises Invalid if the model cannot generate.
        """
        run = getattr(self._model, "continuous_batching_context_manager", None)
        if run is None:
            raise Invalid(f"a {type(self._model).__name__} has no continuous batching: take a model that generates")
        with (
            self._in_batch(None, merged=merged, follow=follow, weights=weights),
            run(generation_config, continuous_batching_config=continuous_batching_config) as manager,
        ):
            yield manager
        raise_what_ended(manager)

    def merge(self, ref: str, *, follow: str | None = None, weights: Weights | None = None) -> Resolution:
        """Merge the chain of `ref`: W' = W + Σ wᵢsᵢBᵢAᵢ, from the pristine weights. A failure restores the bare base.

        For each weight, one product sums the ancestors and a second adds the leaf, in float32, rounded once. Weights
        that are the same as after the last merge are not written. `weights` are level weights by path, by default 1.
        """
        self._check_mergeable()
        resolution, chain = self._read(ref, follow, weights)
        make = partial(self._prepare_programs, resolution, chain, slice(None))
        with self._turns.put_on("merge", ref, follow=follow, weights=weights):
            self._live.put_on(resolution, merged=make, stacked=None)
        return resolution

    def restore(self, *, release: bool = False) -> None:
        """Restore the bare base, bit for bit; `release` also frees the memory reserved for the next merge."""
        with self._turns.take_off():
            if not release:
                self._live.restore()
                return
            self._live.release()
            self._recent.clear()
            self._stacks.clear()
            self._adapters.forget()
            self._batches.forget()

    @contextmanager
    def _in_batch(self, refs: Sequence[Ref] | None, **options: Any) -> Iterator[Batch]:
        """Put a batch on the model for a block; its adapters are loaded before the block waits for the model."""
        batch, put_on = self._prepare_batch(refs, **options)
        with self._turns.block(self):
            try:
                put_on()
                yield batch
            finally:
                batch.end()

    def _prepare_batch(
        self,
        refs: Sequence[Ref] | None,
        *,
        merged: str | None,
        follow: str | None,
        lengths: Sequence[int] | None = None,
        weights: RowWeights = None,
        static: bool = False,
    ) -> tuple[Batch, Callable[[], None]]:
        """Return a batch of these refs' rows or segments, or, for None, of requests to come, and what puts it on."""
        if merged is not None:
            self._check_mergeable()
        self._live.free_model()
        batch, start = self._batches.make(lambda ref, own: self._library.refer(ref, follow, own), merged, static=static)
        if refs is None:
            assert weights is None or isinstance(weights, Mapping)
            reading = batch.prepare_requests(weights)
        else:
            reading = batch.prepare(refs, lengths, weights)
        self._batches.read_missing(reading)
        make = None
        if reading.merged is not None and reading.depth:
            make = partial(self._prepare_programs, *reading.merged, slice(0, reading.depth))

        def start_now() -> MixedBatch:
            return start(batch.reading or reading)

        return batch, partial(self._put_on, start_now, make=make)

    def _put_on(self, start: Callable[[], MixedBatch], *, make: Callable[[], Programs] | None) -> None:
        """Put a batch on the model, also again after a block in it, with the paths that it took last."""
        with self._turns.put_on("_put_on", start, make=make):
            self._live.put_on(None, merged=make, stacked=start)

    def _read(self, ref: str, follow: str | None, weights: Weights | None) -> tuple[Resolution, WeightedChain]:
        self._live.free_model()
        return self._library.read(ref, follow, weights)

    def _check_mergeable(self) -> None:
        if self._quantised:
            raise Invalid(
                f"{self._quantised[0]} is quantised, and a merge writes floating-point weights: stack the chain with "
                "use(ref), or compose to files first and quantise the result"
            )

    def _prepare_programs(self, resolution: Resolution, chain: WeightedChain, levels: slice) -> Programs:
        key = resolution.composition, levels.start, levels.stop
        return self._recent.get(key, lambda: programs_of(chain[levels]))

    def _make_stack(self, resolution: Resolution, chain: WeightedChain, depth: int) -> Stack:
        key = resolution.composition, depth
        return self._stacks.make(key, self._model, lambda: programs_of(chain[depth:]))


def _depth_of(resolution: Resolution, merged: str | None) -> int:
    """Return how many versions of the chain lie at or above the path `merged`; 0 for None."""
    paths = [link.path for link in resolution.chain]
    if merged is None:
        return 0
    if merged not in paths:
        levels = f"its levels are {listed(paths)}" if paths else "it is the base alone, without a level"
        raise Invalid(f"{merged!r} is not in the chain of {resolution.ref}, so it cannot be merged down to: {levels}")
    return paths.index(merged) + 1
