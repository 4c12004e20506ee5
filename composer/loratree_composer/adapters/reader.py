"""A reader of one base's adapters, which fetches by digest, verifies, reads, and caches the last used adapters."""

from collections import OrderedDict
from pathlib import Path
from typing import Final

from loratree_composer.adapters.adapter import Adapter, read_adapter
from loratree_composer.adapters.stored_parts import StoredParts
from loratree_registry.core.digests import version_digest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import ADAPTER_WEIGHTS, Link, Resolution, Version
from loratree_registry.core.registry import Registry
from loratree_registry.errors import Corrupt
from loratree_registry.peft_format.classify import classify
from loratree_registry.peft_format.spec import AdapterSpec
from loratree_registry.tensor_files.header import Header, read_header
from loratree_registry.workspace.fetch import fetch

KEPT: Final = 1 << 30  # bytes of factors


class AdapterReader:
    """A reader of chains over one base, with a cache of at most `kept` bytes of factors, least recently used out first.

    Each answer of the registry is checked against its digests, so a chain is exactly the chain of its leaf's digest.
    """

    def __init__(self, registry: Registry, manifest: BaseManifest, home: Path, *, kept: int = KEPT) -> None:
        self._registry = registry
        self._manifest = manifest
        self._base_digest = manifest.digest
        self._home = home
        self._limit = kept
        self._cache: OrderedDict[str, Adapter] = OrderedDict()

    def load_chain(self, resolution: Resolution) -> list[tuple[Adapter, float]]:
        """Return the adapters of a resolved chain with their level weights, root to leaf.

        Raises Corrupt if bytes or records do not have the digests that name them.
        """
        self._check(resolution)
        known = all(link.digest in self._cache for link in resolution.chain)
        records = {} if known else self._fetch_records(resolution.chain)
        return [(self._get_adapter(link, records), link.weight) for link in resolution.chain]

    def open_chain(self, resolution: Resolution) -> list[tuple[Adapter, float]]:
        """Return the chain as `load_chain` does, but leave the parts in their files, to be read at each access."""
        self._check(resolution)
        records = self._fetch_records(resolution.chain)
        return [(self._open_stored(link, records.get(link.digest)), link.weight) for link in resolution.chain]

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

    def forget(self) -> None:
        """Remove every adapter from the cache."""
        self._cache.clear()

    def _get_adapter(self, link: Link, records: dict[str, Version]) -> Adapter:
        adapter = self._cache.pop(link.digest, None) or self._read(link, records.get(link.digest))
        self._cache[link.digest] = adapter
        while len(self._cache) > 1 and sum(cached.nbytes for cached in self._cache.values()) > self._limit:
            self._cache.popitem(last=False)
        return adapter

    def _read(self, link: Link, version: Version | None) -> Adapter:
        file, _, spec = self._open(link, version)
        return read_adapter(file, spec, digest=link.digest, task_type=_task_type_of(version))

    def _open_stored(self, link: Link, version: Version | None) -> Adapter:
        file, header, spec = self._open(link, version)
        return Adapter(StoredParts(file, header, spec), link.digest, _task_type_of(version), spec.tied_to())

    def _open(self, link: Link, version: Version | None) -> tuple[Path, Header, AdapterSpec]:
        """Fetch a version's weights, and return the file, its header and the spec of the adapter."""
        ref = _ref_of(link)
        weights = [file for file in version.files if file.name == ADAPTER_WEIGHTS] if version is not None else []
        if version is None or self._digest_of(version) != link.digest or len(weights) != 1:
            raise Corrupt(f"the registry's record of {ref} does not give the digest {link.digest} that names it")
        path = fetch(self._registry, self._home, ref, weights[0])
        with path.open("rb") as stream:
            header = read_header(stream, weights[0].size, name=ref)
        return path, header, classify(version.config, header, self._manifest)

    def _digest_of(self, version: Version) -> str:
        pin, config, files = version.pin.digest, version.config, version.files
        return version_digest(base_digest=self._base_digest, pin_digest=pin, config=config, files=files)


def _task_type_of(version: Version | None) -> str | None:
    return None if version is None else version.config.get("task_type")


def _ref_of(link: Link) -> str:
    return f"{link.path}@{link.version}"
