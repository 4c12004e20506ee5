"""Import of an export's rows: an equal row that exists is kept, a row that contradicts the registry is refused."""

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Connection

from loratree_registry.catalog.bases import base_values, check_base
from loratree_registry.core.digests import DIGEST_PREFIX
from loratree_registry.core.paths import Level, base_of, check_level, is_ancestor, parent_of
from loratree_registry.core.progress import Counter, Progress
from loratree_registry.database import queries
from loratree_registry.database.queries.importing import KeptNode, KeptVersion
from loratree_registry.errors import Invalid, Unavailable, listed
from loratree_registry.housekeeping.exports.format import (
    AliasLine,
    BaseLine,
    EventLine,
    FileLine,
    NodeLine,
    TombstoneLine,
    VersionLine,
)
from loratree_registry.housekeeping.exports.import_report import CHUNK, ImportReport, chunks
from loratree_registry.housekeeping.exports.line_rows import (
    alias_event,
    fields_of,
    node_row,
    version_event,
    version_row,
)
from loratree_registry.housekeeping.exports.reading import Export


class RowImporter:
    """A writer that adds an export in the caller's transaction. A `trial` is rolled back, and needs no stored bytes.

    A trial inserts no rows that refer to blobs, so that publishers of the same blobs do not wait for the trial.
    `report` counts the lines and lists the conflicts.
    """

    def __init__(self, connection: Connection, export: Export, *, trial: bool) -> None:
        self._connection, self._export, self._trial = connection, export, trial
        self._path = export.header.path
        self._newest = queries.importing.last_node(connection)  # this import created the nodes with a higher key
        self._newest_version = queries.importing.last_version(connection)
        self._bases: dict[str, tuple[int, str]] = {}
        self._sizes: dict[bytes, int] = {}  # of the blobs that the export lists, filled only by a trial
        self.report = ImportReport()

    def add(self, progress: Progress, doing: str) -> None:
        """Add every line; `doing` is a word for it.

        Raises Invalid if the export is wrong, Conflict listing what contradicts this registry.
        """
        steps: dict[str, Callable[[list[Any]], None]] = {
            "bases": self._add_bases,
            "nodes": self._add_nodes,
            "versions": self._add_versions,
            "tombstones": self._add_tombstones,
            "aliases": self._add_aliases,
            "events": self._add_events,
        }
        if self._trial:
            self._sizes = {_to_bytes(blob.sha256): blob.size for blob, _ in self._export.blobs()}
        for name, step in steps.items():
            counter = Counter(progress, f"{doing} {name}", self._export.header.counts.get(name, 0), name)
            for lines in chunks(self._export.lines(name), 1 if name == "bases" else CHUNK):
                step(lines)
                counter.add(len(lines))
        self.report.refuse()
        if self._trial:
            self._check_last_numbers()

    @property
    def bases(self) -> list[str]:
        """The names of the export's bases that were read."""
        return list(self._bases)

    @property
    def listed_bytes(self) -> int:
        """The size in bytes of the blobs that the export lists; only a trial knows it."""
        return sum(self._sizes.values())

    def _check_last_numbers(self) -> None:
        """Check that each `last_number` is the number of a version or a tombstone.

        A forged last_number at the maximum would block publishing at the node. Nodes above the exported subtree are not
        checked, because the export holds only their pinned versions.
        """
        for lines in chunks(self._export.lines("nodes")):
            inside = [line for line in lines if self._is_inside(line.path)]
            highest = queries.importing.highest_numbers(self._connection, self._paths_of(inside))
            wrong = [line.path for line in inside if line.last_number > highest.get(line.path, 0)]
            if wrong:
                raise Invalid(
                    f"the export has a last_number above every version at {listed(wrong)}, expected the highest "
                    "version's or tombstone's: export it again"
                )

    def _add_bases(self, lines: list[BaseLine]) -> None:
        for line in lines:
            digest = check_base(line.name, line.manifest, line.source)
            if digest != line.digest:
                raise Invalid(
                    f"the base {line.name} is {line.digest}, and its manifest gives {digest}: export it again"
                )
            base = queries.bases.find_base(self._connection, line.name)
            if base is not None and base.digest != digest:
                self.report.conflict(f"the base {line.name} is {base.digest} here, and {digest} in the export")
            base_id = base.id if base else self._insert_base(line)
            self._bases[line.name] = (base_id, digest)
            self.report.count("bases", kept=base is not None)
            if line.files and not queries.importing.has_weights(self._connection, base_id):
                self._check_bytes(line.files)
                rows = [{"base_id": base_id, "name": f.name, "size": f.size, "sha256": f.sha256} for f in line.files]
                if not self._trial:
                    queries.importing.insert_weights(self._connection, rows)
                self.report.added["weights"] += len(rows)

    def _insert_base(self, line: BaseLine) -> int:
        values = {"name": line.name, "digest": line.digest, "source": line.source, "created_at": line.created_at}
        return queries.importing.insert_base(self._connection, values | base_values(line.manifest))

    def _add_nodes(self, lines: list[NodeLine]) -> None:
        paths = self._paths_of(lines, parents=True)
        if not self._trial:
            # Every writer locks nodes before it reads their rows, so that no row changes between reading and writing.
            queries.importing.lock_nodes(self._connection, paths)
        known = queries.importing.kept_nodes(self._connection, paths)
        new = [line for line in lines if line.path not in known]
        keys = dict(
            zip((line.path for line in new), queries.importing.node_keys(self._connection, len(new)), strict=True)
        )
        rows: list[dict[str, Any]] = []
        for line in lines:
            node = known.get(line.path)
            level = self._check_level(line, known)
            if node is None:
                base_id, _ = self._find_base(line.path)
                known[line.path] = KeptNode(keys[line.path], base_id, level, line.last_number)
                rows.append(node_row(line, known[line.path], known.get(parent_of(line.path) or "")))
            elif node.level != line.level:
                self.report.conflict(f"{line.path} is a {node.level} here, and a {line.level} in the export")
            elif node.last_number < line.last_number:
                queries.importing.raise_last_number(self._connection, node.id, line.last_number)
            self.report.count("nodes", kept=node is not None)
        queries.importing.insert_nodes(self._connection, rows)
        above = [row for row in rows if not self._is_inside(row["path"])]
        self._record((row["path"], "node-created", {"level": row["level"]}) for row in above)

    def _check_level(self, line: NodeLine, known: dict[str, KeptNode]) -> Level:
        self._find_base(line.path)
        parent = parent_of(line.path)
        if not (self._is_inside(line.path) or is_ancestor(line.path, self._path or "")):
            raise Invalid(f"the node {line.path} is not part of an export of {self._path}: export it again")
        if parent is None or line.level == "base":
            if parent or line.level != "base":
                raise Invalid(f"the node {line.path} is a {line.level}: every root is a base, and no other node is")
            return line.level
        if parent not in known:
            raise Invalid(f"the node {line.path} comes before its parent: export it again")
        return check_level(line.level, known[parent].level, line.path)

    def _add_versions(self, lines: list[VersionLine]) -> None:
        self._check_digests(lines)
        nodes = self._find_nodes(lines)
        pins = [(line.pin.path, line.pin.number) for line in lines if line.pin]
        placed = queries.importing.kept_versions(
            self._connection, [*((line.path, line.number) for line in lines), *pins]
        )
        numbers = queries.importing.numbers_of(self._connection, [(line.path, line.digest) for line in lines])
        buried = queries.importing.kept_tombstones(self._connection, [(line.path, line.number) for line in lines])
        before = [line for line in lines if nodes[line.path].id <= self._newest]
        barred = queries.importing.quarantined(self._connection, [(line.path, line.content) for line in before])
        new = []
        for line in lines:
            key = (line.path, line.number)
            if (version := placed.get(key)) is not None:
                self._compare(line, version)
            elif key in buried:
                self.report.conflict(f"{line.ref} was deleted here")
            elif (line.path, line.digest) in numbers:
                self.report.conflict(f"{line.ref} is version {numbers[line.path, line.digest]} here")
            elif (line.path, line.content) in barred:
                self.report.conflict(f"{line.ref} holds what is quarantined here")
            elif self._is_pinned(line, placed):
                new.append(line)
                numbers[line.path, line.digest] = line.number
                placed[key] = KeptVersion(-len(new), line.digest, line.withdrawn is not None, False)
        self._insert_versions(new, nodes, placed)
        self._warn_of_bytes(new)

    def _warn_of_bytes(self, new: list[VersionLine]) -> None:
        """Note the versions whose bytes a version of this registry holds that is quarantined.

        Publishing refuses such bytes. A backup may hold them, from before the quarantine, and is restored whole.
        """
        digests = [file.sha256 for line in new for file in line.files]
        found = queries.importing.quarantined_bytes(self._connection, digests, newest=self._newest_version)
        for line in new:
            barred = [found[file.sha256] for file in line.files if file.sha256 in found]
            if barred and line.quarantined is None:
                ref, reason = barred[0]
                self.report.warn(f"{line.ref} holds the same bytes as {ref}, which is quarantined here ({reason})")

    def _check_digests(self, lines: list[VersionLine]) -> None:
        if problems := [problem for line in lines for problem in line.problems(self._find_base(line.path)[1])]:
            raise Invalid(f"the export contradicts itself: {listed(problems)}; export it again")

    def _compare(self, line: VersionLine, version: KeptVersion) -> None:
        """Compare a line with the registry's version of the same number; note a conflict or differences."""
        if version.digest != line.digest:
            self.report.conflict(f"{line.ref} is {version.digest} here, and {line.digest} in the export")
            return
        self.report.count("versions", kept=True)
        for mark, here, exported in (
            ("withdrawn", version.withdrawn, line.withdrawn),
            ("quarantined", version.quarantined, line.quarantined),
        ):
            if here != (exported is not None):
                self.report.differ(f"{line.ref} is {'' if here else 'not '}{mark} here, unlike in the export")

    def _is_pinned(self, line: VersionLine, placed: dict[tuple[str, int], KeptVersion]) -> bool:
        """Return whether a version's pin exists with the same digest; if not, note a conflict or raise Invalid."""
        if line.pin is None:
            return True
        pin, ref = placed.get((line.pin.path, line.pin.number)), f"{line.pin.path}@{line.pin.number}"
        if pin is None and self.report.conflicts:
            return False  # the pin may itself be a refused version
        if pin is None:
            raise Invalid(f"{line.ref} is pinned to {ref}, which does not come before it: export it again")
        if pin.digest != line.pin.digest:
            self.report.conflict(f"{line.ref} is pinned to {ref} as {line.pin.digest}, which is {pin.digest}")
        return pin.digest == line.pin.digest

    def _insert_versions(
        self, new: list[VersionLine], nodes: dict[str, KeptNode], placed: dict[tuple[str, int], KeptVersion]
    ) -> None:
        self._check_bytes([file for line in new for file in line.files])
        keys = queries.importing.version_keys(self._connection, len(new))
        rows, files = [], []
        for key, line in zip(keys, new, strict=True):
            pin = placed[line.pin.path, line.pin.number].id if line.pin else None
            rows.append(
                version_row(line, nodes[line.path])
                | {"id": key, "pin_id": keys[-pin - 1] if pin is not None and pin < 0 else pin}
            )
            files += [
                {"version_id": key, "name": file.name, "size": file.size, "sha256": file.sha256} for file in line.files
            ]
        queries.importing.insert_versions(self._connection, rows, [] if self._trial else files)
        self.report.added["versions"] += len(new)
        added = [line for line in new if not self._is_restored(line.path, nodes[line.path])]
        self._record((line.path, "version-imported", version_event(line)) for line in added)

    def _add_tombstones(self, lines: list[TombstoneLine]) -> None:
        nodes = self._find_nodes(lines)
        keys = [(line.path, line.number) for line in lines]
        buried = queries.importing.kept_tombstones(self._connection, keys)
        alive = queries.importing.kept_versions(self._connection, keys)
        rows = []
        for line in lines:
            key = (line.path, line.number)
            here = buried.get(key) or (alive[key].digest if key in alive else None)
            if here not in (None, line.digest):
                self.report.conflict(
                    f"{line.path}@{line.number} is {here} here, and {line.digest} was deleted in the export"
                )
            elif key in alive:
                self.report.differ(f"{line.path}@{line.number} is not deleted here, unlike in the export")
            elif here is None:
                rows.append({"node_id": nodes[line.path].id} | fields_of(line, "path"))
                buried[key] = line.digest
            self.report.count("tombstones", kept=here is not None)
        queries.importing.insert_tombstones(self._connection, rows)

    def _add_aliases(self, lines: list[AliasLine]) -> None:
        nodes = self._find_nodes(lines)
        aliases = queries.importing.kept_aliases(self._connection, [(line.path, line.name) for line in lines])
        placed = queries.importing.kept_versions(self._connection, [(line.path, line.number) for line in lines])
        rows, events = [], []
        for line in lines:
            version, at = placed.get((line.path, line.number)), aliases.get((line.path, line.name))
            if version is None:
                self.report.conflict(
                    f"the alias {line.path}@{line.name} is at version {line.number}, which is not here"
                )
            elif at not in (None, line.number):
                self.report.differ(
                    f"the alias {line.path}@{line.name} is at version {at} here, {line.number} in the export"
                )
            elif at is None and version.withdrawn:
                self.report.differ(
                    f"the alias {line.path}@{line.name} is not set, as version {line.number} is withdrawn"
                )
            elif at is None:
                aliases[line.path, line.name] = line.number
                node = nodes[line.path]
                rows.append({"node_id": node.id, "version_id": version.id} | fields_of(line, "path", "number"))
                if not self._is_restored(line.path, node):
                    events.append((line.path, "alias-set", alias_event(line)))
            self.report.count("aliases", kept=at is not None)
        queries.importing.insert_aliases(self._connection, rows)
        self._record(events)

    def _add_events(self, lines: list[EventLine]) -> None:
        """Restore the history of the nodes that this import has created."""
        nodes = self._find_nodes(lines)
        restored = [line for line in lines if self._is_restored(line.path, nodes[line.path])]
        queries.importing.insert_events(self._connection, [(line.path, fields_of(line, "path")) for line in restored])
        self.report.added["events"] += len(restored)

    def _record(self, events: Iterable[tuple[str, str, dict[str, Any]]]) -> None:
        """Insert events for the changes that this import makes at nodes that existed before, or above the subtree."""
        rows = [(path, {"kind": kind, "detail": detail}) for path, kind, detail in events]
        queries.importing.insert_events(self._connection, rows)

    def _check_bytes(self, files: list[FileLine]) -> None:
        """Check that the blobs are stored, and protect them from collecting. A trial checks the export's list."""
        sizes = {file.sha256: file.size for file in files}
        digests = sorted(sizes)
        if self._trial:
            if wrong := [digest for digest in digests if self._sizes.get(_to_bytes(digest)) != sizes[digest]]:
                raise Invalid(f"the export does not list these blobs with this size: {listed(wrong)}; export it again")
            return
        stored = queries.blobs.hold_blobs(self._connection, digests)
        if missing := [digest for digest in digests if stored.get(digest) != sizes[digest]]:
            raise Unavailable(f"blobs were collected during the import: {listed(missing)}; import it again")

    def _find_nodes(self, lines: "list[VersionLine] | list[TombstoneLine] | list[AliasLine] | list[EventLine]") -> Any:
        nodes = queries.importing.kept_nodes(self._connection, self._paths_of(lines))
        if missing := sorted({line.path for line in lines} - nodes.keys()):
            raise Invalid(f"the export names nodes that it does not list: {listed(missing)}; export it again")
        return nodes

    def _paths_of(self, lines: Iterable[Any], *, parents: bool = False) -> set[str]:
        paths = {line.path for line in lines}
        return paths | {parent for path in paths if (parent := parent_of(path))} if parents else paths

    def _find_base(self, path: str) -> tuple[int, str]:
        if base_of(path) not in self._bases:
            raise Invalid(f"the export mentions {path}, but does not list its base: export it again")
        return self._bases[base_of(path)]

    def _is_inside(self, path: str) -> bool:
        return self._path is None or path == self._path or is_ancestor(self._path, path)

    def _is_restored(self, path: str, node: KeptNode) -> bool:
        return node.id > self._newest and self._is_inside(path)


def _to_bytes(sha256: str) -> bytes:
    """Return a digest as bytes, which take half the memory of the text."""
    return bytes.fromhex(sha256.removeprefix(DIGEST_PREFIX))
