"""A reader of one base's adapters, which fetches by digest, verifies, reads, and caches the last used adapters."""

from collections.abc import Sequence
from pathlib import Path

from loratree_composer.adapters.adapter import Adapter, WeightedChain, read_adapter
from loratree_composer.adapters.budget import Budget, Cache
from loratree_composer.adapters.stored_parts import StoredParts
from loratree_registry.core.digests import FileDigest, version_digest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.progress import Counter, Progress, Tick, silent
from loratree_registry.core.records import ADAPTER_WEIGHTS, Link, Resolution, Version
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Corrupt
from loratree_registry.peft_format.classify import classify
from loratree_registry.peft_format.spec import AdapterSpec
from loratree_registry.tensor_files.header import Header, read_header
from loratree_registry.workspace.fetch import fetch, open_fetched

Records = dict[str, Version]  # by digest


class AdapterReader:
    """A reader of chains over one base, with a cache of adapters in at most half of a budget.

    Each answer of the registry is checked against its digests, so a chain is exactly the chain of its leaf's digest.
    """

    def __init__(self, registry: Registry, manifest: BaseManifest, home: Path, *, budget: Budget | None = None) -> None:
        self._registry = registry
        self._manifest = manifest
        self._base_digest = manifest.digest
        self._tied = manifest.tied_names()
        self._home = home
        self._cache: Cache[tuple[str, Adapter]] = Cache(budget or Budget(), "adapters", share=0.5)

    def load_chain(self, resolution: Resolution, *, progress: Progress = silent) -> list[tuple[Adapter, float]]:
        """Return the adapters of a resolved chain with their level weights, root to leaf.

        Raises Corrupt if bytes or records do not have the digests that name them.
        """
        self._check(resolution)
        known = all(link.digest in self._cache for link in resolution.chain)
        records = {} if known else self._fetch_records(resolution.chain)
        counter = _counter_of(progress, resolution.chain, records)
        chain: list[tuple[Adapter, float]] = []
        for link in resolution.chain:
            chain.append((self._get_adapter(link, records, chain, counter.add), link.weight))
        return chain

    def open_chain(self, resolution: Resolution, *, progress: Progress = silent) -> list[tuple[Adapter, float]]:
        """Return the chain as `load_chain` does, but leave the parts in their files, to be read at each access."""
        self._check(resolution)
        records = self._fetch_records(resolution.chain)
        counter = _counter_of(progress, resolution.chain, records)
        chain: list[tuple[Adapter, float]] = []
        for link in resolution.chain:
            chain.append((self._open_stored(link, records, chain, counter.add), link.weight))
        return chain

    def _check(self, resolution: Resolution) -> None:
        if resolution.base.digest != self._base_digest or resolution.composition != resolution.to_chain().digest:
            raise Corrupt(f"the registry's answer for {resolution.ref} does not give the digests that it states")

    def _fetch_records(self, links: list[Link]) -> Records:
        """Fetch the versions by digest: one request, and one more for each version that no pin names."""
        versions: Records = {}
        for link in reversed(links):
            if link.digest not in versions:
                versions |= {version.digest: version for version in self._registry.ancestry(_ref_of(link))}
        return versions

    def resident(self) -> dict[str, int]:
        """Return the size in bytes of each adapter in the cache, by ref, the least recently used first."""
        return {name: size for (name, _), size in self._cache.entries()}

    def forget(self) -> None:
        """Remove every adapter from the cache."""
        self._cache.clear()

    def _get_adapter(self, link: Link, records: Records, above: WeightedChain, on_read: Tick) -> Adapter:
        if (cached := self._cache.get(link.digest)) is not None:
            return cached[1]
        adapter = self._read(link, records, above, on_read)
        self._cache.put(link.digest, (_ref_of(link), adapter), adapter.nbytes)
        return adapter

    def _read(self, link: Link, records: Records, above: WeightedChain, on_read: Tick) -> Adapter:
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
        path = fetch(self._registry, self._home, ref, weights[0], on_read=on_read)
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
        while version.pin.digest in records and len(pinned) < len(records):
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
    size = sum(file.size for link in links for file in _weights_of(records.get(link.digest)))
    return Counter(progress, "fetching adapters", size)


def _task_type_of(version: Version | None) -> str | None:
    return None if version is None else version.config.get("task_type")


def _ref_of(link: Link) -> str:
    return f"{link.path}@{link.version}"
