"""A reader of one base's adapters, which fetches by digest, verifies, reads, and caches the last used adapters."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from loratree_composer.adapters.adapter import Adapter, PartsLater, WeightedChain, read_adapter
from loratree_composer.adapters.budget import Budget, Cache
from loratree_composer.adapters.fetched_files import FetchedFiles
from loratree_composer.adapters.stored_parts import StoredParts
from loratree_composer.adapters.tiers import Counts, Tier, Tiers, timed
from loratree_registry.core.digests import FileDigest, version_digest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.progress import Counter, Progress, Tick, silent, uncounted
from loratree_registry.core.records import ADAPTER_WEIGHTS, Link, Resolution, Version
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Corrupt
from loratree_registry.peft_format.classify import classify
from loratree_registry.peft_format.spec import AdapterSpec
from loratree_registry.tensor_files.header import Header, read_header
from loratree_registry.workspace.fetch import open_fetched


class Records(Mapping[str, Version]):
    """The versions of a chain and those that they are pinned to, by digest, which `fetch` gets when one is needed."""

    def __init__(self, fetch: Callable[[list[Link]], dict[str, Version]], links: list[Link]) -> None:
        self._fetch, self._links = fetch, links
        self._found: dict[str, Version] | None = None

    def read(self) -> dict[str, Version]:
        """Fetch the versions, once."""
        if self._found is None:
            self._found = self._fetch(self._links)
        return self._found

    @property
    def is_read(self) -> bool:
        """True if they were fetched."""
        return self._found is not None

    def __getitem__(self, digest: str) -> Version:
        return self.read()[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self.read())

    def __len__(self) -> int:
        return len(self.read())


class AdapterReader:
    """A reader of chains over one base, with a cache of adapters in RAM, for any number of threads.

    Each answer of the registry is checked against its digests, so a chain is exactly the chain of its leaf's digest.
    An adapter that several threads ask for at once is read once. `tiers` bounds what is kept in RAM, by default half of
    a budget, and on the disk.
    """

    def __init__(
        self,
        registry: Registry,
        manifest: BaseManifest,
        home: Path,
        *,
        budget: Budget | None = None,
        tiers: Tiers | None = None,
    ) -> None:
        self._registry = registry
        self._manifest = manifest
        self._base_digest = manifest.digest
        self._tied = manifest.tied_names()
        self._home = home
        tiers = tiers or Tiers()
        budget, share = (budget or Budget(), 0.5) if tiers.ram is None else (Budget(tiers.ram), 1.0)
        self._cache: Cache[tuple[str, Adapter]] = Cache(budget, "adapters", share=share)
        self._disk = FetchedFiles(registry, home, limit=tiers.disk)
        self._lock, self._counts = threading.Lock(), Counts()
        self._loading: dict[str, Future[Adapter]] = {}

    def load_chain(self, resolution: Resolution, *, progress: Progress = silent) -> list[tuple[Adapter, float]]:
        """Return the adapters of a resolved chain with their level weights, root to leaf.

        Raises Corrupt if bytes or records do not have the digests that name them.
        """
        self._check(resolution)
        records = Records(self._fetch_records, resolution.chain)
        if not self._holds(resolution):
            records.read()
        counter = _counter_of(progress, resolution.chain, records)
        chain: list[tuple[Adapter, float]] = []
        for link in resolution.chain:
            chain.append((self._get_adapter(link, records, chain, counter.add), link.weight))
        return chain

    def refer_chain(self, resolution: Resolution) -> list[tuple[Adapter, float]]:
        """Return the chain as `load_chain` does, but load an adapter when its parts are asked for, and as often."""
        self._check(resolution)
        records = Records(self._fetch_records, resolution.chain)
        chain: list[tuple[Adapter, float]] = []
        for link in resolution.chain:
            load = partial(self._get_adapter, link, records, list(chain), uncounted)
            chain.append((Adapter(PartsLater(load), link.digest), link.weight))
        return chain

    def open_chain(self, resolution: Resolution, *, progress: Progress = silent) -> list[tuple[Adapter, float]]:
        """Return the chain as `load_chain` does, but leave the parts in their files, to be read at each access."""
        self._check(resolution)
        records = Records(self._fetch_records, resolution.chain)
        records.read()
        counter = _counter_of(progress, resolution.chain, records)
        chain: list[tuple[Adapter, float]] = []
        for link in resolution.chain:
            chain.append((self._open_stored(link, records, chain, counter.add), link.weight))
        return chain

    def _check(self, resolution: Resolution) -> None:
        if resolution.base.digest != self._base_digest or resolution.composition != resolution.to_chain().digest:
            raise Corrupt(f"the registry's answer for {resolution.ref} does not give the digests that it states")

    def _fetch_records(self, links: list[Link]) -> dict[str, Version]:
        """Fetch the versions by digest: one request, and one more for each version that no pin names."""
        versions: dict[str, Version] = {}
        for link in reversed(links):
            if link.digest not in versions:
                versions |= {version.digest: version for version in self._registry.ancestry(_ref_of(link))}
        return versions

    @property
    def nbytes(self) -> int:
        """The size in bytes of the adapters in the cache."""
        return self._cache.nbytes

    def resident(self) -> dict[str, int]:
        """Return the size in bytes of each adapter in the cache, by ref, the least recently used first."""
        with self._lock:
            return {name: size for (name, _), size in self._cache.entries()}

    def read_ram(self) -> Tier:
        """Return the cache's state."""
        with self._lock:
            return self._counts.read(limit=self._cache.limit, held=self._cache.nbytes, versions=len(self._cache))

    def read_disk(self) -> Tier:
        """Return the state of the fetched files."""
        return self._disk.read()

    def forget(self) -> None:
        """Remove every adapter from the cache."""
        with self._lock:
            self._cache.clear()

    def _holds(self, resolution: Resolution) -> bool:
        with self._lock:
            return all(link.digest in self._cache for link in resolution.chain)

    def _get_adapter(self, link: Link, records: Records, above: WeightedChain, on_read: Tick) -> Adapter:
        """Return an adapter of the cache, or one that this or another thread reads now."""
        with self._lock:
            if (cached := self._cache.get(link.digest)) is not None:
                self._counts.hit()
                return cached[1]
            if is_mine := (loading := self._loading.get(link.digest)) is None:
                loading = self._loading[link.digest] = Future()
        assert loading is not None
        if not is_mine:
            self._counts.hit()
            return loading.result()
        try:
            with timed() as watch:
                adapter = self._read(link, records, above, on_read)
        except BaseException as error:
            with self._lock:
                del self._loading[link.digest]
            loading.set_exception(error)
            raise
        with self._lock:
            before = self._cache.evictions
            self._cache.put(link.digest, (_ref_of(link), adapter), adapter.nbytes)
            self._counts.evict(self._cache.evictions - before)
            del self._loading[link.digest]
        self._counts.load(adapter.nbytes, watch.seconds)
        loading.set_result(adapter)
        return adapter

    def _read(self, link: Link, records: Records, above: WeightedChain, on_read: Tick) -> Adapter:
        files = _weights_of(records.get(link.digest))
        with ExitStack() as uses:
            for weights in files:
                uses.enter_context(self._disk.in_use(weights))
            file, _, spec = self._open(link, records, above, on_read)
            return read_adapter(file, spec, digest=link.digest, task_type=_task_type_of(records.get(link.digest)))

    def _open_stored(self, link: Link, records: Records, above: WeightedChain, on_read: Tick) -> Adapter:
        file, header, spec = self._open(link, records, above, on_read)
        return Adapter(StoredParts(file, header, spec), link.digest, _task_type_of(records.get(link.digest)))

    def _open(
        self, link: Link, records: Records, above: WeightedChain, on_read: Tick
    ) -> tuple[Path, Header, AdapterSpec]:
        """Fetch a version's weights, and return the file, its header and the spec of the adapter."""
        ref, version = _ref_of(link), records.get(link.digest)
        weights = _weights_of(version)
        if version is None or self._digest_of(version) != link.digest or len(weights) != 1:
            raise Corrupt(f"the registry's record of {ref} does not give the digest {link.digest} that names it")
        path = self._disk.fetch(ref, weights[0], on_read)
        with open_fetched(path) as stream:
            header = read_header(stream, weights[0].size, name=ref)
        untied = bool(self._tied) and self._is_trained_untied(version, records, above)
        return path, header, classify(version.config, header, self._manifest, untied=untied)

    def _is_trained_untied(self, version: Version, records: Records, above: WeightedChain) -> bool:
        """Return whether the versions that this one was trained on take ties of the base apart.

        If the chain above holds exactly these versions, their own parts decide. Otherwise, if another alias is
        followed, their records do.
        """
        pinned: list[Version] = []
        while version.pin.digest is not None and version.pin.digest in records and len(pinned) < len(records):
            version = records[version.pin.digest]
            pinned.insert(0, version)
        if [adapter.digest for adapter, _ in above] == [ancestor.digest for ancestor in pinned]:
            return any(adapter.unties(self._tied) for adapter, _ in above)
        return any(ancestor.summary.unties for ancestor in pinned)

    def _digest_of(self, version: Version) -> str | None:
        pin, config, files = version.pin.digest, version.config, version.files
        try:
            return version_digest(base_digest=self._base_digest, pin_digest=pin, config=config, files=files)
        except ValueError:  # a record that no digest names
            return None


def _weights_of(version: Version | None) -> list[FileDigest]:
    return [file for file in version.files if file.name == ADAPTER_WEIGHTS] if version is not None else []


def _counter_of(progress: Progress, links: Sequence[Link], records: Records) -> Counter:
    """Return a counter of the bytes of a chain's adapters."""
    size = sum(file.size for link in links for file in _weights_of(records.get(link.digest))) if records.is_read else 0
    return Counter(progress, "fetching adapters", size)


def _task_type_of(version: Version | None) -> str | None:
    return None if version is None else version.config.get("task_type")


def _ref_of(link: Link) -> str:
    return f"{link.path}@{link.version}"
