"""A registry as it will be once the versions are published that a dry run has checked."""

import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loratree_registry.core.digests import version_digest
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.paths import (
    BASE,
    LEVELS,
    Level,
    ancestors_of,
    base_of,
    check_same_level,
    parent_of,
    parse_ref,
    planned_level,
)
from loratree_registry.core.records import Node, Page, Pin, Version
from loratree_registry.core.registry import Registry
from loratree_registry.errors import NotFound, listed
from loratree_registry.workspace.places import find_level_beside

if TYPE_CHECKING:
    from loratree_registry.workspace.publish import Prepared


class PlannedRegistry:
    """Answers what finding a pin asks as the registry will answer it later; all else is asked of the registry now.

    So a dry run of a manifest refuses a line as publishing it does, also if the line's parent is another line.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry, self._lock = registry, threading.Lock()
        self._planned: dict[str, list[Version]] = defaultdict(list)
        self._levels: dict[str, Level] = {}  # of the nodes that are made, also of groupings on the way
        self._above = set[str]()  # the nodes that a planned one is below
        self._there: dict[str, Level] = {}  # of the nodes that the registry has, which never change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def node(self, path: str) -> Node:
        """Return a node, with the head that it will have."""
        planned = self._find_planned(path)
        try:
            node = self._registry.node(path)
        except NotFound:
            with self._lock:
                if path not in self._levels:
                    raise
                level, has_children = self._levels[path], path in self._above
            node = Node(path=path, level=level, head=None, has_children=has_children, aliases={}, created_at="")
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

    def plan_nodes(self, path: str, level: Level | None) -> Level:
        """Plan the nodes that publishing at `path` makes, and return the level of the node there.

        Raises NotFound, Invalid and Conflict as publishing does, and plans nothing then.
        """
        trail, made = [*ancestors_of(path), path], dict[str, Level]()
        above = self._find_there(trail)
        with self._lock:
            here = self._there[above]
            for step in trail[trail.index(above) + 1 :]:
                if step in self._levels:
                    here = self._levels[step]
                else:
                    below = len(trail) - trail.index(step) - 1
                    here = made[step] = planned_level(step, above, here, below=below, leaf=level)
                above = step
            check_same_level(path, here, level)
            self._levels.update(made)
            self._above.update(trail[:-1])
        return here

    def find_level(self, path: str) -> Level | None:
        """Return the level of a node that is there or planned, else None."""
        try:
            return self.node(path).level
        except NotFound:
            return None

    def count_made(self) -> dict[Level, int]:
        """Count the nodes that are to be made, by their level, the highest first."""
        with self._lock:
            counts = Counter(self._levels.values())
        return {level: counts[level] for level in LEVELS if counts[level]}

    def add(self, path: str, level: Level | None, prepared: "Prepared", manifest: BaseManifest) -> Version:
        """Plan the version that publishing a checked adapter at `path` will make, and return it."""
        adapter, above = prepared.adapter, self._find_pinned(path, prepared.pin.parent)
        untied = above is not None and any(version.summary.unties for version in self.ancestry(_ref(above)))
        spec = adapter.spec(manifest, on_base=above is None, untied=untied)
        base = self._registry.base(base_of(path))
        pin_digest = None if above is None else above.digest
        level = self.plan_nodes(path, level)
        version = Version(
            path=path,
            level=level,
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
        return version

    def _find_there(self, trail: Sequence[str]) -> str:
        """Return the last of the nodes on the way to a path that the registry has, and keep its level."""
        for step in reversed(trail):
            if step in self._there:
                return step
            try:
                self._there[step] = self._registry.node(step).level
            except NotFound:
                continue
            return step
        return self._registry.base(trail[0]).name  # there is no such base, and this says so

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


def plan_levels(registry: Registry, paths: Sequence[str], level: Level | None) -> dict[str, Level]:
    """Return the level of each path's node once versions are published at all of them, given `level` or not.

    Without `level`, a new node beside others takes the level of most of them, as publish would ask. Raises NotFound,
    Invalid and Conflict as publishing does.
    """
    planned, beside = PlannedRegistry(registry), dict[str, Level | None]()
    for parent in {parent for path in paths if level is None and (parent := parent_of(path)) is not None}:
        with suppress(NotFound):
            beside[parent] = find_level_beside(registry, parent)
    ordered = sorted(paths, key=lambda path: (len(ancestors_of(path)), path))  # as a manifest is published
    return {
        path: planned.plan_nodes(path, level or planned.find_level(path) or beside.get(parent_of(path) or ""))
        for path in ordered
    }


def _ref(version: Version) -> str:
    return f"{version.path}@{version.number}"
