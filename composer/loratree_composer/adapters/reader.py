"""The adapters of one base: fetched by digest, verified, read, and the last used kept in memory."""

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
    """Reads chains of versions over one base; at most `kept` bytes of factors stay in memory, least recently used out.

    What a registry answers is checked against the digests that name it, so a chain is what its leaf's digest says.
    """

    def __init__(self, registry: Registry, manifest: BaseManifest, home: Path, *, kept: int = KEPT) -> None:
        self._registry = registry
        self._manifest = manifest
        self._base_digest = manifest.digest
        self._home = home
        self._limit = kept
        self._kept: OrderedDict[str, Adapter] = OrderedDict()

    def chain(self, resolution: Resolution) -> list[tuple[Adapter, float]]:
        """The adapters of a resolved chain with their level weights, root to leaf.

        Raises Corrupt where bytes or records do not have the digests that name them.
        """
        self._check(resolution)
        known = all(link.digest in self._kept for link in resolution.chain)
        records = {} if known else self._records(resolution.chain)
        return [(self._adapter(link, records), link.weight) for link in resolution.chain]

    def stored(self, resolution: Resolution) -> list[tuple[Adapter, float]]:
        """The same, fetched and verified, whose parts stay in their files until they are asked for, each time."""
        self._check(resolution)
        records = self._records(resolution.chain)
        return [(self._stored(link, records.get(link.digest)), link.weight) for link in resolution.chain]

    def _check(self, resolution: Resolution) -> None:
        if resolution.base.digest != self._base_digest or resolution.composition != resolution.to_chain().digest:
            raise Corrupt(f"the registry's answer for {resolution.ref} does not give the digests that it states")

    def _records(self, links: list[Link]) -> dict[str, Version]:
        """The versions by digest: one request, and one more for each that no pin names."""
        found: dict[str, Version] = {}
        for link in reversed(links):
            if link.digest not in found:
                found |= {version.digest: version for version in self._registry.ancestry(_ref(link))}
        return found

    def forget(self) -> None:
        """Frees every adapter that is kept in memory."""
        self._kept.clear()

    def _adapter(self, link: Link, records: dict[str, Version]) -> Adapter:
        adapter = self._kept.pop(link.digest, None) or self._read(link, records.get(link.digest))
        self._kept[link.digest] = adapter
        while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > self._limit:
            self._kept.popitem(last=False)
        return adapter

    def _read(self, link: Link, version: Version | None) -> Adapter:
        file, _, spec = self._open(link, version)
        return read_adapter(file, spec, digest=link.digest, task_type=_task_type(version))

    def _stored(self, link: Link, version: Version | None) -> Adapter:
        file, header, spec = self._open(link, version)
        return Adapter(StoredParts(file, header, spec), link.digest, _task_type(version), spec.follows())

    def _open(self, link: Link, version: Version | None) -> tuple[Path, Header, AdapterSpec]:
        """The file of a version's weights, its header, and what it is."""
        ref = _ref(link)
        weights = [file for file in version.files if file.name == ADAPTER_WEIGHTS] if version is not None else []
        if version is None or self._digest(version) != link.digest or len(weights) != 1:
            raise Corrupt(f"the registry's record of {ref} does not give the digest {link.digest} that names it")
        path = fetch(self._registry, self._home, ref, weights[0])
        with path.open("rb") as stream:
            header = read_header(stream, weights[0].size, name=ref)
        return path, header, classify(version.config, header, self._manifest)

    def _digest(self, version: Version) -> str:
        pin, config, files = version.pin.digest, version.config, version.files
        return version_digest(base_digest=self._base_digest, pin_digest=pin, config=config, files=files)


def _task_type(version: Version | None) -> str | None:
    return None if version is None else version.config.get("task_type")


def _ref(link: Link) -> str:
    return f"{link.path}@{link.version}"
