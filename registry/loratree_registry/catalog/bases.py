"""Bases: the frozen models at the roots of the trees."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection

from loratree_registry.catalog.paging import check_limit, page
from loratree_registry.core.manifest import MAX_COUNT, BaseManifest, check_manifest, read_manifest
from loratree_registry.core.paths import base_of, digest_start, is_digest, parent_of, parse_base_name, parse_path
from loratree_registry.core.records import Base, Page
from loratree_registry.core.text import check_text, nearest
from loratree_registry.database import queries
from loratree_registry.database.json_text import JsonText, to_json
from loratree_registry.database.rows import BaseRow
from loratree_registry.errors import Conflict, Invalid, NotFound, listed


@dataclass(frozen=True, slots=True)
class CheckedBase:
    """A base to record, already checked: its digest, its manifest, and the columns of its row."""

    name: str
    digest: str
    manifest: BaseManifest
    columns: dict[str, Any]


_SIMILAR = 200  # names to look for a similar one among
_WHOLE = 8  # trees to look for a path in that was given without its base


class ManifestChanged(Conflict):
    """Another process recorded or changed the base since its stored manifest was read."""


def examine_base(name: str, manifest: BaseManifest, *, source: str | None) -> CheckedBase:
    """Check a base without the database: a large manifest takes seconds, and no lock waits for it. Raises Invalid."""
    digest, values = check_base(name, manifest, source), base_values(manifest)
    columns = {"name": name, "digest": digest, "source": source, **values, "manifest": to_json(values["manifest"])}
    return CheckedBase(name, digest, manifest, columns)


def find_widened(stored: str, checked: CheckedBase) -> JsonText | None:
    """Return the stored manifest of the same base with what this one adds, or None if that is nothing.

    Raises Invalid.
    """
    known = read_manifest(json.loads(stored))
    widened = known.widened_by(checked.manifest)
    if widened == known:
        return None
    return to_json(asdict(check_manifest(widened)))


def add_base(connection: Connection, checked: CheckedBase, *, stored: str | None, widened: JsonText | None) -> Base:
    """Record a base and the root of its tree. Raises Conflict if the name stands for another digest.

    The same name and digest again add what this manifest knows of the base beyond the recorded one, and no more:
    `widened` was computed from `stored`, the text of the recorded one. Raises ManifestChanged if that is another now.
    """
    name, digest = checked.name, checked.digest
    changed = ManifestChanged(f"the base {name} was changed by another process at the same time: try again")
    base = queries.bases.find_base(connection, name)
    if base is None:
        base_id = queries.bases.insert_base(connection, **checked.columns)
        if base_id is None:
            raise changed
        root = queries.nodes.insert_node(connection, base_id=base_id, parent_id=None, path=name, level="base")
        assert root is not None  # only a base has a path of one segment, and this one is new
        queries.events.insert_event(connection, name, "base-added", digest=digest)
        return find_base(connection, name).record()
    if base.digest != digest:
        raise Conflict(
            f"the base {name} is {base.digest} and cannot become {digest}: other weights are another base, "
            "add them under another name"
        )
    if stored is None or widened is not None:
        queries.nodes.lock_node(connection, queries.nodes.nodes_on_path(connection, name)[0].id)
        if queries.bases.find_manifest_text(connection, name) != stored:
            raise changed
    if widened is not None:
        queries.bases.update_manifest(connection, base.id, widened)
    return base.record()


def set_source(connection: Connection, name: str, source: str | None) -> Base:
    """Set where a base came from, in words; None removes it. Raises NotFound, Invalid."""
    check_text("source", source, limit=1000)
    base = find_base(connection, name)
    if base.source != source:
        queries.bases.update_source(connection, base.id, source)
        queries.events.insert_event(connection, name, "base-source-set", source=source)
    return find_base(connection, name).record()


def find_base(connection: Connection, name: str) -> BaseRow:
    """Return one base's row. Raises NotFound."""
    base = queries.bases.find_base(connection, parse_path(name))
    if base is None:
        raise unknown_base(connection, name)
    return base


def list_bases(connection: Connection, *, after: str | None, limit: int) -> Page[Base]:
    """Return a page of the bases, by name."""
    after = None if after is None else parse_path(after)
    rows = queries.bases.list_bases(connection, after=after, limit=check_limit(limit) + 1)
    return page(rows, limit, key=lambda row: row.name, records=lambda shown: [row.record() for row in shown])


def base_manifest(connection: Connection, name: str) -> BaseManifest:
    """Return the manifest of a base, which lists every tensor. Raises NotFound."""
    document = queries.bases.find_manifest(connection, parse_path(name))
    if document is None:
        raise unknown_base(connection, name)
    return read_manifest(document)


def unknown_base(connection: Connection, name: str) -> NotFound:
    """Return the error for a base that does not exist, with the most similar name that does."""
    if digest_start(name) is not None:
        return NotFound(f"{name} is no base: a digest follows the path of its node, as in tiny/medicine@{name}")
    if parent_of(name) is not None:
        return NotFound(f"{name} is no base: name one alone, such as {base_of(name)}; `loratree base ls` lists them")
    known = [base.name for base in queries.bases.list_bases(connection, after=None, limit=_SIMILAR)]
    if not known:
        return NotFound(
            f"the base {name} is not known, as the registry has none: check LORATREE_HOME or LORATREE_URL, or add it "
            f"with `loratree base add {name} DIR`"
        )
    whole = [f"{base}/{name}" for base in known[:_WHOLE]]  # a path that was given without its base
    node = next((path for path in whole if queries.nodes.nodes_on_path(connection, path)[-1].path == path), None)
    similar = nearest(name, known) if node is None else f" (a path begins with its base: did you mean {node}?)"
    return NotFound(
        f"the base {name} is not known{similar}: add it with `loratree base add {name} DIR`, or see `loratree base ls`"
    )


def base_values(manifest: BaseManifest) -> dict[str, Any]:
    """Return the columns of a base's row that come from its manifest."""
    return {
        "architecture": manifest.architecture,
        "vocabulary_size": manifest.vocabulary_size,
        "parameters": _count_values(manifest),
        "manifest": asdict(manifest),
    }


def check_base(name: str, manifest: BaseManifest, source: str | None) -> str:
    """Check everything that the client says about a base, and return its digest. Raises Invalid."""
    parse_base_name(name)
    check_text("source", source, limit=1000)
    check_text("architecture", manifest.architecture, limit=200)
    check_manifest(manifest)
    problems = [f"{p.name} has {p.sha256!r}" for p in manifest.parameters if p.sha256 and not is_digest(p.sha256)]
    if problems:
        raise Invalid(f"a tensor's digest is sha256: and 64 hexadecimal digits: {listed(problems)}")
    if any(size < 0 for p in manifest.parameters for size in p.shape) or _count_values(manifest) > MAX_COUNT:
        raise Invalid(f"the base's tensors have shapes that no model has: expected at most {MAX_COUNT} values in all")
    if not 0 <= (manifest.vocabulary_size or 0) <= MAX_COUNT:
        raise Invalid(f"the base's vocabulary size is {manifest.vocabulary_size}: expected 0 to {MAX_COUNT}")
    try:
        return manifest.digest
    except ValueError as error:
        raise Invalid(f"the base's manifest has no canonical form: {error}") from error


def _count_values(manifest: BaseManifest) -> int:
    return sum(math.prod(parameter.shape) for parameter in manifest.parameters if parameter.tied_to is None)
