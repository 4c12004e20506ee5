"""A registry as it will be once the versions are published that a dry run has checked."""

import threading
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from loratree_registry.core.digests import version_digest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import BASE, Level, ancestors_of, base_of, parse_ref
from loratree_registry.core.records import Node, Page, Pin, Version
from loratree_registry.core.registry import Registry
from loratree_registry.errors import NotFound, listed

if TYPE_CHECKING:
    from loratree_registry.workspace.publish import Prepared

_ANY_LEVEL: Final[Level] = "subdomain"  # the registry says what level a new node gets; no pin depends on it


class PlannedRegistry:
    """Answers what finding a pin asks as the registry will answer it later; all else is asked of the registry now.

    So a dry run of a manifest refuses a line as publishing it does, also if the line's parent is another line.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry, self._lock = registry, threading.Lock()
        self._planned: dict[str, list[Version]] = defaultdict(list)
        self._above = set[str]()  # the nodes that the planned versions make on the way

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def node(self, path: str) -> Node:
        """Return a node, with the head that it will have."""
        planned = self._find_planned(path)
        try:
            node = self._registry.node(path)
        except NotFound:
            if not planned and path not in self._above:
                raise
            has_children = path in self._above
            node = Node(path=path, level=_ANY_LEVEL, head=None, has_children=has_children, aliases={}, created_at="")
        return replace(node, head=planned[-1].number) if planned else node

    def version(self, ref: str) -> Version:
        """Return a version that is there or planned."""
        parsed = parse_ref(ref)
        planned = self._find_planned(parsed.path)
        for version in reversed(planned):
            if parsed.selector in (None, version.number, version.digest):
                return version
        try:
            return self._registry.version(ref)
        except NotFound as error:
            if not planned:
                raise
            numbers = listed([str(version.number) for version in planned])
            raise NotFound(f"{ref} will not be there: the manifest gives {parsed.path} version {numbers}") from error

    def versions(self, path: str, *, content: str | None = None, **options: Any) -> Page[Version]:
        """Return the versions at a node that have a content, planned ones too."""
        planned = [version for version in self._find_planned(path) if content in (None, version.content)]
        try:
            found = self._registry.versions(path, content=content, **options)
        except NotFound:
            if not planned:
                raise
            found = Page(items=[], next=None)
        return replace(found, items=[*reversed(planned), *found.items])

    def ancestry(self, ref: str) -> list[Version]:
        """Return a version and what it was trained on, as far as the base, the version last."""
        version = self.version(ref)
        if version not in self._find_planned(version.path):
            return self._registry.ancestry(ref)
        above = [] if version.pin.path is None else self.ancestry(f"{version.pin.path}@{version.pin.version}")
        return [*above, version]

    def add(self, path: str, level: Level | None, prepared: "Prepared", manifest: BaseManifest) -> Version:
        """Plan the version that publishing a checked adapter at `path` will make, and return it."""
        adapter, above = prepared.adapter, self._find_pinned(path, prepared.pin.parent)
        untied = above is not None and any(version.summary.unties for version in self.ancestry(_ref(above)))
        spec = adapter.spec(manifest, on_base=above is None, untied=untied)
        base = self._registry.base(base_of(path))
        pin_digest = None if above is None else above.digest
        version = Version(
            path=path,
            level=level or _ANY_LEVEL,
            number=self._find_number(path),
            digest=version_digest(
                base_digest=base.digest, pin_digest=pin_digest, config=adapter.canonical, files=[adapter.file]
            ),
            content=adapter.content,
            base=base.name,
            base_digest=base.digest,
            pin=Pin(
                path=None if above is None else above.path,
                version=None if above is None else above.number,
                digest=pin_digest,
                found=prepared.pin.found,
            ),
            summary=spec.summary(unties=spec.unties(manifest.tied_names(), adapter.digests)),
            config=adapter.canonical,
            files=[adapter.file],
            size=adapter.file.size,
            note=None,
            created_at="",
            withdrawn=None,
            quarantined=None,
        )
        with self._lock:
            self._planned[path].append(version)
            self._above.update(ancestors_of(path))
        return version

    def _find_planned(self, path: str) -> list[Version]:
        with self._lock:
            return list(self._planned.get(path, ()))

    def _find_pinned(self, path: str, parent: str | None) -> Version | None:
        """Return the version that a pin names, the nearest ancestor's head for None; None for the base."""
        if parent is not None:
            return None if parent == BASE else self.version(parent)
        for ancestor in reversed(ancestors_of(path)[1:]):
            try:
                if self.node(ancestor).head is not None:
                    return self.version(ancestor)
            except NotFound:
                continue
        return None

    def _find_number(self, path: str) -> int:
        if planned := self._find_planned(path):
            return planned[-1].number + 1
        try:
            given = [
                *(version.number for version in self._registry.versions(path, limit=1).items),
                *(tombstone.number for tombstone in self._registry.tombstones(path, limit=1).items),
            ]
        except NotFound:
            return 1
        return max(given, default=0) + 1


def _ref(version: Version) -> str:
    return f"{version.path}@{version.number}"
