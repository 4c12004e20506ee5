"""Recording a base: what takes long comes before the transaction that writes."""

from sqlalchemy import Engine

from loratree_registry.catalog import bases
from loratree_registry.core.manifest import BaseManifest
from loratree_registry.core.records import Base
from loratree_registry.database import queries
from loratree_registry.database.engine import reading, writing

_TRIES = 3


def add_base(engine: Engine, name: str, manifest: BaseManifest, *, source: str | None) -> Base:
    """Record a base, or add to the recorded one what this manifest knows beyond it. See Registry.add_base.

    If another process changes the base in the meantime, this computes again, at most twice.
    """
    checked = bases.examine_base(name, manifest, source=source)
    for _ in range(_TRIES - 1):
        try:
            return _add(engine, checked)
        except bases.ManifestChanged:
            continue
    return _add(engine, checked)


def _add(engine: Engine, checked: bases.CheckedBase) -> Base:
    with reading(engine) as connection:
        base = queries.bases.find_base(connection, checked.name)
        is_same = base is not None and base.digest == checked.digest
        stored = queries.bases.find_manifest_text(connection, checked.name) if is_same else None
    widened = None if stored is None else bases.find_widened(stored, checked)
    with writing(engine) as connection:
        return bases.add_base(connection, checked, stored=stored, widened=widened)
