"""All SQL of the registry, one noun or one use case per file. A query takes a connection and never commits."""

from loratree_registry.database.queries import (
    aliases,
    bases,
    blobs,
    collecting,
    diagnostics,
    events,
    exporting,
    importing,
    many_rows,
    nodes,
    publishing,
    shared,
    tombstones,
    uploads,
    verifying,
    versions,
)

__all__ = [
    "aliases",
    "bases",
    "blobs",
    "collecting",
    "diagnostics",
    "events",
    "exporting",
    "importing",
    "many_rows",
    "nodes",
    "publishing",
    "shared",
    "tombstones",
    "uploads",
    "verifying",
    "versions",
]
