"""The chains of one base: resolved by a registry, and read into memory or referred to."""

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import chain

from loratree_composer.adapters.adapter import WeightedChain
from loratree_composer.adapters.reader import AdapterReader
from loratree_composer.batch.batches import Batches
from loratree_composer.batch.composed import Ref, Weights, check_ref
from loratree_composer.residency.prefetch import load_all, refs_below
from loratree_registry.core.paths import base_of, parse_ref
from loratree_registry.core.records import Base, Resolution
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Invalid
from loratree_registry.workspace.remarks import find_remarks, warn


class Library:
    """Finds the adapters of any path of a base's tree; for any number of threads."""

    def __init__(self, registry: Registry, base: Base, adapters: AdapterReader) -> None:
        self._registry, self._base, self._adapters = registry, base, adapters

    def read(self, ref: str, follow: str | None, weights: Weights | None) -> tuple[Resolution, WeightedChain]:
        """Resolve a ref and load its adapters. Raises Invalid if it is not in the base's tree."""
        resolution = self._resolve(ref, follow, weights)
        return resolution, self._adapters.load_chain(resolution)

    def refer(self, ref: Ref, follow: str | None, weights: Weights | None) -> tuple[Resolution, WeightedChain]:
        """Resolve a ref, if it is a path, and return its adapters, each loaded when its parts are asked for."""
        check_ref(ref)
        if isinstance(ref, str):
            ref = self._resolve(ref, follow, weights)
        elif follow is not None or weights:
            raise Invalid(
                f"the Resolution of {ref.ref} has its versions and level weights: give its path to choose others"
            )
        return ref, self._adapters.refer_chain(ref)

    def prefetch(
        self, refs: Sequence[Ref], below: str | None, follow: str | None, batches: Batches | None
    ) -> Future[int]:
        """Load chains on threads of their own, into RAM, and if `batches` are given, to where these take them from."""
        if isinstance(refs, str):
            raise Invalid(f"a prefetch takes a list of paths: give [{refs!r}], or below={refs!r} for all below it")
        wanted = chain(refs, () if below is None else refs_below(self._registry, below))

        def load(ref: Ref) -> None:
            _, adapters = self.refer(ref, follow, None)
            if batches is not None:
                batches.prefetch(adapters)
            else:
                for adapter, _ in adapters:
                    adapter.loaded()

        return load_all(wanted, load)

    def _resolve(self, ref: str, follow: str | None, weights: Weights | None) -> Resolution:
        if base_of(parse_ref(ref).path) != self._base.name:
            raise Invalid(f"{ref} is not in the tree of {self._base.name}, the base of this model")
        resolution = self._registry.resolve(ref, follow=follow, weights=weights)
        warn(find_remarks(self._registry, resolution, follow=follow))
        return resolution
