"""Registries whose storage a test may look into and damage: each database with each blob store."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from loratree_registry.blobs.local import LocalBlobStore
from loratree_registry.blobs.s3.store import S3BlobStore
from loratree_registry.core.records import Page
from loratree_registry.core.registry import Registry
from loratree_registry.embedded.registry import EmbeddedRegistry
from loratree_registry.embedded.storage import Storage, open_storage
from loratree_registry.errors import LoratreeError
from loratree_registry.settings import Settings
from tests.registry.fresh import open_fresh
from tests.registry.material import sha256

T = TypeVar("T")
_numbers = count(1)


@dataclass(frozen=True)
class House:
    """A registry, the storage that it is in, and the settings that lead there."""

    settings: Settings
    registry: EmbeddedRegistry
    storage: Storage

    def overwrite(self, sha256: str, content: bytes) -> None:
        """Puts other bytes where a blob is, behind the store's back."""
        blobs = self.storage.blobs
        if isinstance(blobs, LocalBlobStore):
            (blobs.root / "sha256" / sha256[7:9] / sha256[7:]).write_bytes(content)
        else:
            assert isinstance(blobs, S3BlobStore)
            key = blobs.bucket.key(f"sha256/{sha256[7:9]}/{sha256[7:]}")
            blobs.bucket.client.put_object(Bucket=blobs.bucket.name, Key=key, Body=content)

    def flip(self, sha256: str) -> None:
        """Flips one bit of a blob in its middle."""
        with self.storage.blobs.open(sha256) as stream:
            content = bytearray(stream.read())
        content[len(content) // 2] ^= 1
        self.overwrite(sha256, bytes(content))


@contextmanager
def house(folder: Path, **environment: str) -> Iterator[House]:
    """Opens a registry under `folder`, a new one each time, on the database and blobs that `environment` names."""
    home = folder / f"house{next(_numbers)}"
    settings = Settings.from_environment({"LORATREE_HOME": str(home)} | environment)
    registry = open_fresh(settings)
    try:
        with open_storage(settings) as storage:
            yield House(settings, registry, storage)
    finally:
        registry.close()


def everything(registry: Registry) -> dict[str, Any]:
    """All that the registry answers, but for the keys that pages go by: equal for a registry and for its copy."""
    answers: dict[str, Any] = {}
    for base in pages(registry.bases):
        answers[base.name] = [base, registry.base_manifest(base.name), registry.node(base.name)]
        nodes = [registry.node(base.name), *pages(partial(registry.descendants, base.name))]
        answers |= {node.path: _of_node(registry, node.path) for node in nodes}
    return answers


def _of_node(registry: Registry, path: str) -> list[Any]:
    versions = pages(partial(registry.versions, path))
    events = [
        (event.path, event.kind, event.detail, event.created_at) for event in pages(partial(registry.events, path))
    ]
    found: list[Any] = [registry.node(path), registry.aliases(path), pages(partial(registry.tombstones, path)), events]
    for version in versions:
        ref = f"{version.path}@{version.number}"
        found += [version, registry.lineage(ref), pages(partial(registry.dependents, ref))]
        if version.quarantined is None:
            found += [_resolved(registry, ref), registry.documents(ref)]
            with registry.open_file(ref, version.files[0].name) as stream:
                found.append(sha256(stream.read()))
    return found


def _resolved(registry: Registry, ref: str) -> object:
    try:
        return registry.resolve(ref)
    except LoratreeError as error:
        return str(error)


def pages(listing: Callable[..., Page[T]]) -> list[T]:
    """The items of every page."""
    found, page = [], listing(limit=2)
    while True:
        found += page.items
        if page.next is None:
            return found
        page = listing(after=page.next, limit=2)
