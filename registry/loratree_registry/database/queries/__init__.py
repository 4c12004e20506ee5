"""Every query, one noun a file: each takes a connection, none commits. No other package writes SQL."""

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
